"""What the libraries under a pipeline say of themselves, kept off a terminal that shows a progress bar of ours."""

import logging
import warnings

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Keep progress bars and notices of diffusers, transformers and what they bring in off this process's streams."""
    # Quantisation packages, where they are installed, tell on import which kernels for other hardware they lack.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
