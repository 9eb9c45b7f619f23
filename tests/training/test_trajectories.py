import torch
from torch.testing import assert_close

from semipermeable.training.trajectories import denoise

from training_helpers import CAPTIONS


def _run(host, generator, **options):
    return denoise(
        host,
        host.condition(list(CAPTIONS.targets)),
        host.condition([""]),
        num_steps=5,
        **{"guidance": 1.0, **options},
        generator=generator,
    )


def test_each_latent_carries_the_label_under_which_the_network_read_it(host, monkeypatch):
    seen = []
    predict = host.predict
    monkeypatch.setattr(host, "predict", lambda x, t, c: seen.append((x.clone(), t.clone())) or predict(x, t, c))
    run = _run(host, torch.Generator().manual_seed(0))
    assert len(seen) == 5
    for (x, t), latent, label in zip(seen, run.latents, run.timesteps, strict=True):
        assert torch.equal(x, latent)
        assert (t == label).all()


def test_predictions_are_those_of_the_bare_model(host):
    run = _run(host, torch.Generator().manual_seed(0), guidance=4.0)
    condition = host.condition(list(CAPTIONS.targets))
    for x, t, prediction in zip(run.latents, run.timesteps, run.predictions, strict=True):
        with torch.no_grad():
            assert_close(host.predict(x, t.expand(2), condition), prediction, atol=1e-5, rtol=1e-4)


def test_it_draws_what_the_pipeline_draws(host):
    noise = torch.randn((2, *host.latent_shape()), generator=torch.Generator().manual_seed(3))
    expected = host.pipe(
        list(CAPTIONS.targets), latents=noise, num_inference_steps=5, guidance_scale=4.0, output_type="latent"
    ).images
    run = _run(host, torch.Generator().manual_seed(3), guidance=4.0)
    x, t = run.latents[-1], run.timesteps[-1]
    both = host.condition(["", "", *CAPTIONS.targets])
    with torch.no_grad():
        bare, told = host.predict(torch.cat([x, x]), t.expand(4), both).chunk(2)
    scheduler = host.make_scheduler(5)
    assert_close(scheduler.step(bare + 4 * (told - bare), t, x).prev_sample, expected, atol=1e-4, rtol=1e-3)


def test_the_unneeded_half_changes_nothing(host):
    short = _run(host, torch.Generator().manual_seed(0), stop=2)
    long = _run(host, torch.Generator().manual_seed(0), skip_unconditional=False)
    assert short.latents.shape[0] == 2
    assert_close(short.latents, long.latents[:2], atol=1e-5, rtol=1e-4)
