"""Styles and objects of UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846): the version of 50 styles, whose released
Stable Diffusion draws them from "A OBJECT image in STYLE style."."""

__all__ = ["CANVAS_OBJECTS", "CANVAS_STYLES", "canvas_prompt"]

CANVAS_STYLES = (
    "Abstractionism", "Artist Sketch", "Blossom Season", "Bricks", "Byzantine", "Cartoon", "Cold Warm",
    "Color Fantasy", "Comic Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early Autumn",
    "Expressionism", "Fauvism", "French", "Glowing Sunset", "Gorgeous Love", "Greenfield", "Impressionism", "Ink Art",
    "Joy", "Liquid Dreams", "Magic Cube", "Meta Physics", "Meteor Shower", "Monet", "Mosaic", "Neon Lines", "On Fire",
    "Pastel", "Pencil Drawing", "Picasso", "Pop Art", "Red Blue Ink", "Rust", "Sketch", "Sponge Dabbed",
    "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van Gogh", "Vibrant Flow", "Warm Love", "Warm Smear",
    "Watercolor", "Winter",
)  # fmt: skip
CANVAS_OBJECTS = (
    "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses",
    "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
)  # fmt: skip


def canvas_prompt(thing: str, style: str) -> str:
    """Return the prompt of an object in a style."""
    return f"A {thing} image in {style} style."
