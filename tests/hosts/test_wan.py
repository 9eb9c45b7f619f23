import pytest
import torch
from torch.testing import assert_close

import semipermeable as spm
from hosts.family_laws import PROMPTS, FamilyLaws, reloaded
from hosts.tiny_large import make_wan
from hosts.tiny_settings import without_ftfy
from semipermeable.errors import ArchitectureError
from semipermeable.hosts import WanHost, host_for


def loaded_wan(folder, **options):
    """A reloaded pipeline whose videos have five frames of 32 × 32, in latents 2 × 4 × 4."""
    pipe = reloaded(make_wan(**options), folder)
    pipe.default_num_frames, pipe.default_height, pipe.default_width = 5, 32, 32
    return pipe


class TestWan(FamilyLaws):
    host_class = WanHost
    boundary = None

    @pytest.fixture(scope="class")
    def loaded(self, tmp_path_factory):
        return loaded_wan(tmp_path_factory.mktemp("wan") / "tiny", boundary_ratio=self.boundary)

    def test_encoding_agrees_with_the_pipelines_own(self, pipe, host):
        with torch.no_grad():
            text, avoided = pipe.encode_prompt(PROMPTS, max_sequence_length=512)
        assert torch.equal(host.condition(PROMPTS)["text"], text)
        assert torch.equal(host.unconditional()["text"], avoided[:1])

    def test_prompts_are_tidied_as_the_pipeline_does_but_kept_as_they_are(self, host):
        one, other = host.encode(["a  neon icon\nof a cat", "a neon icon of a cat"])
        assert one.token_ids == other.token_ids
        assert one.text == "a  neon icon\nof a cat"

    def test_videos_are_frames(self, host):
        arguments = {"steps": 1, "guidance": 1.0, "generator": torch.Generator().manual_seed(0)}
        frames = host.draw(PROMPTS[:1], output="pt", **arguments)
        assert frames.shape == (1, 5, 3, 32, 32)
        assert 0 <= float(frames.min()) <= float(frames.max()) <= 1
        (pictures,) = host.draw(PROMPTS[:1], **arguments)
        assert [picture.size for picture in pictures] == [(32, 32)] * 5

    def test_text_sites_read_projected_states(self, pipe, host):
        condition, read = host.condition(PROMPTS[:1]), []
        block = pipe.transformer.blocks[0].attn2.to_k
        handle = block.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        latents = torch.randn((1, *host.latent_shape()), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            host.predict(latents, torch.tensor([999]), condition)
        handle.remove()
        assert_close(read[0][0], host.text_inputs(condition["text"][0]))


class TestWanWithTwoDenoisers(TestWan):
    boundary = 0.9

    def test_membranes_sit_on_both(self, host, membrane):
        assert {name.split(".")[0] for name in membrane.pairs} == {"transformer", "transformer_2"}
        assert all(name.startswith("transformer.") for name in host.text_sites)

    def test_each_row_is_predicted_by_the_denoiser_of_its_timestep(self, pipe, host):
        """Rows on both sides of the boundary, in one call; at it, the first one."""
        condition = host.condition([PROMPTS[0]] * 3)
        x = torch.randn((3, *host.latent_shape()), generator=torch.Generator().manual_seed(0))
        t = torch.tensor([899, 900, 950])
        with torch.no_grad():
            found = host.predict(x, t, condition)
            for row, denoiser in enumerate((pipe.transformer_2, pipe.transformer, pipe.transformer)):
                told = denoiser(x[[row]], t[[row]], condition["text"][[row]], return_dict=False)[0]
                assert_close(found[[row]], told)


def test_a_timestep_for_each_patch(tmp_path):
    """Wan 2.2 TI2V; its pipeline and our trajectory agree on the first prediction."""
    pipe = loaded_wan(tmp_path / "ti2v", expand_timesteps=True)
    host, seen = host_for(pipe), []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    host.draw(PROMPTS, steps=1, guidance=1.0, generator=torch.Generator().manual_seed(0), output="latent")
    scheduler = host.make_scheduler(1)
    x = host.initial_latents(scheduler, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        host.predict(x, scheduler.timesteps[:1].expand(2), host.condition(PROMPTS))
    handle.remove()
    assert_close(seen[1], seen[0], check_dtype=False)
    assert seen[0].shape == (2, 8)


def test_a_video_to_video_pipeline_knows_what_training_needs(monkeypatch):
    from diffusers import WanVideoToVideoPipeline

    without_ftfy(monkeypatch)
    pipe = make_wan()
    parts = {name: part for name, part in pipe.components.items() if name != "transformer_2"}
    relative = WanVideoToVideoPipeline(**parts)
    relative.default_num_frames, relative.default_height, relative.default_width = 5, 32, 32
    host, own = host_for(relative), host_for(pipe)
    assert host.latent_shape() == (4, 2, 4, 4)
    assert host.size_arguments() == {"height": 32, "width": 32}
    x, t = torch.randn(1, *host.latent_shape(), generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        found = host.predict(x, t, host.condition(PROMPTS[:1]))
        assert torch.equal(found, own.predict(x, t, own.condition(PROMPTS[:1])))


def test_image_to_video_is_refused():
    pipe = make_wan()
    pipe.transformer.register_to_config(in_channels=8)
    with pytest.raises(ArchitectureError, match="Wan 2"):
        spm.attach(pipe, [])
