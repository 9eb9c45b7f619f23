"""How a bundled model is made, from public icon sets to weights: one module per step, every step seeded and resumable.

icons → styles → captions → autoencoder → text → denoiser → judges → export → evaluate; `build` runs them in order.
"""
