import torch

from semipermeable.training.examples import make_examples

from training_helpers import CAPTIONS, CONCEPT, quick


def test_every_part_of_a_run_on_fresh_latents_sees_near_neighbours(host):
    config = quick(reuse_trajectories=False, num_steps=16, sampling_steps=1, twin_share=0.25)
    encoded = host.encode(CAPTIONS.anchors)
    examples = make_examples(host, config, 0, CAPTIONS, CONCEPT.surrogate, encoded, eta=1.0)
    twin = host.condition(list(CAPTIONS.twins))["text"]
    batches = [examples.batch(step) for step in range(1, config.num_steps + 1)]
    near = [sum(torch.equal(row, twin[0]) for row in one.condition["text"][one.num_targets :]) for one in batches]
    assert sum(near) == round(0.25 * config.num_steps * config.num_anchors)
    assert sum(near[: config.num_steps // 2]) < sum(near)
    again = make_examples(host, config, 0, CAPTIONS, CONCEPT.surrogate, encoded, eta=1.0).batch(9)
    assert torch.equal(again.condition["text"], batches[8].condition["text"])
