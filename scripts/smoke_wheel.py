"""What an installed wheel must do; run by smoke_wheel.sh from a folder that is not the repository."""

import importlib.resources
import importlib.util
import sys

import semipermeable as spm

heavy = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
if heavy:
    sys.exit(f"import semipermeable is not light: it imported {', '.join(heavy)}")
if "site-packages" not in (spm.__file__ or ""):
    sys.exit(f"the package under test is not the installed one: {spm.__file__}")
if importlib.util.find_spec("torchvision") is not None:
    sys.exit("torchvision was installed; nothing may pull it in")
if not (importlib.resources.files("semipermeable.evaluation") / "templates" / "demo.html.j2").is_file():
    sys.exit("the wheel lacks the template of the report")

pipe = spm.zoo.load("emoji")
image = pipe("a neon icon of a cat", num_inference_steps=4, guidance_scale=4.0).images[0]
if image.size != (64, 64) or image.getextrema() == ((0, 0),) * 3:
    sys.exit(f"the bundled model drew nothing: {image.size}, {image.getextrema()}")
