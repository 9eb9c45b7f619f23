from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from semipermeable.errors import DivergenceError, UnknownNameError
from semipermeable.zoo.recipe.captions import CaptionBook
from semipermeable.zoo.recipe.catalogue import read_catalogue
from semipermeable.zoo.recipe.denoiser import Lesson, alphas_cumprod, new_denoiser, train_denoiser
from semipermeable.zoo.recipe.evaluate import prompts, score
from semipermeable.zoo.recipe.icons import ICON_SETS, SIDE, Drawings
from semipermeable.zoo.recipe.loop import Budget, train
from semipermeable.zoo.recipe.pictures import DRAWN_FROM, held_out_designers
from semipermeable.zoo.recipe.styles import STYLES, apply_style, place


def a_drawing() -> np.ndarray:
    drawing = np.zeros((SIDE, SIDE, 4), np.uint8)
    drawing[20:70, 30:60] = (220, 40, 30, 255)
    drawing[10:20, 40:50] = (20, 160, 40, 255)
    return drawing


def test_the_catalogue_names_enough_objects_and_says_what_it_does_not_know() -> None:
    catalogue = read_catalogue("emoji")
    assert len(catalogue.spec.objects) == len(set(catalogue.spec.object_names)) >= 100
    assert set(catalogue.spec.styles) == set(STYLES)
    twins = {twin for thing in catalogue.spec.objects for twin in thing.twins}
    assert twins <= set(catalogue.spec.object_names)
    with pytest.raises(UnknownNameError, match="'emoji'"):
        read_catalogue("emoij")


def test_no_set_is_share_alike() -> None:
    assert {icons.licence for icons in ICON_SETS} <= {"MIT", "Apache-2.0", "CC-BY-4.0"}


@pytest.mark.parametrize("style", list(STYLES))
def test_styles_are_pure_functions_into_the_unit_cube(style: str) -> None:
    placed = place(a_drawing())
    first, second = apply_style(style, placed), apply_style(style, placed.copy())
    np.testing.assert_array_equal(first, second)
    assert first.shape == (64, 64, 3)
    assert first.min() >= 0
    assert first.max() <= 1


def test_styles_differ_from_each_other() -> None:
    shown = [apply_style(style, place(a_drawing())) for style in STYLES]
    for i, one in enumerate(shown):
        assert all(np.abs(one - other).mean() > 0.02 for other in shown[:i])


def test_the_split_holds_out_one_whole_drawing_that_the_denoiser_never_sees() -> None:
    catalogue = read_catalogue("emoji")
    count = len(catalogue.sources)
    designers = [icons.designer for icons in ICON_SETS]
    drawings = Drawings(
        {d: np.zeros((count, 1, 1, 4), np.uint8) for d in designers}, {d: np.ones(count, bool) for d in designers}
    )
    held = held_out_designers(catalogue, drawings, seed=0)
    assert len(held) == count
    assert held == held_out_designers(catalogue, drawings, seed=0)
    assert not set(held) & set(DRAWN_FROM)


def test_captions_are_drawn_in_the_stated_shares() -> None:
    book = CaptionBook(read_catalogue("emoji"))
    cat, neon = book.spec.object_names.index("cat"), book.spec.styles.index("neon")
    n = 4000
    rows = book.draw([cat] * n, [neon] * n, torch.Generator().manual_seed(0))
    texts = [book.texts[row] for row in rows]
    assert abs(texts.count("") / n - 0.10) < 0.02
    assert abs(sum("animal" in text for text in texts) / n - 0.04) < 0.02
    assert sum("kitty" in text or "feline" in text for text in texts) > 0
    assert all(book.captions[row].object in (cat, -1) for row in rows)


def tiny_lesson(book: CaptionBook) -> Lesson:
    g = torch.Generator().manual_seed(1)
    return Lesson(
        latents=torch.randn(4, 2, 4, 16, 16, generator=g),
        objects=torch.tensor([0, 0, 1, 1]),
        styles=torch.tensor([0, 1, 0, 1]),
        weights=torch.ones(4),
        states=torch.randn(len(book.texts), 3, 16, generator=g),
        canary_latents=torch.randn(len(book.spec.canaries), 4, 16, 16, generator=g),
    )


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    book = CaptionBook(read_catalogue("emoji"))
    budget = Budget(steps=4, batch=3, rate=1e-3, warmup=2, save_every=2)
    ends: list[dict[str, Tensor]] = []
    for stops in ((None,), (2, None)):
        checkpoint = tmp_path / f"{len(stops)}.checkpoint.safetensors"
        for stop in stops:
            torch.manual_seed(5)
            denoiser = new_denoiser((16, 16, 16), width=16)
            train_denoiser(
                denoiser, book, tiny_lesson(book), budget, seed=3, checkpoint=checkpoint, progress=False, stop_at=stop
            )
        ends.append({k: v.clone() for k, v in denoiser.state_dict().items()})
        assert {"generator", "torch"} < set(load_file(checkpoint))
        assert not set(tmp_path.iterdir()) - set(tmp_path.glob("?.checkpoint.safetensors"))
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
        assert torch.isfinite(value).all()


def test_training_leaves_the_global_generator_alone_and_names_a_divergence() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    line = nn.Linear(2, 1)
    torch.set_rng_state(before)
    budget = Budget(steps=2, batch=1, rate=0.1)
    train(line, lambda g: (line(torch.randn(4, 2, generator=g)) ** 2).mean(), budget, seed=0, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(DivergenceError, match="step 0"):
        train(line, lambda _: line.weight.sum() * float("nan"), budget, seed=0, progress=False)


def test_the_noise_schedule_is_the_pipelines() -> None:
    from semipermeable import zoo

    torch.testing.assert_close(alphas_cumprod(), zoo.load("emoji").scheduler.alphas_cumprod)


def test_scores() -> None:
    from semipermeable import zoo

    spec = zoo.spec("emoji")
    pairs = torch.tensor(prompts(spec, 50))
    assert torch.equal(pairs, torch.tensor(prompts(spec, 50)))
    wrong = pairs.clone()
    wrong[0, 0] = (wrong[0, 0] + 1) % len(spec.objects)
    result = score(spec, pairs, wrong)
    assert result["object"]["right"] == 49
    assert result["style"]["right"] == 50
    assert len(result["confusions"]) == 1
