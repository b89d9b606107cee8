"""SegFormer as a judge: it learns, the same every time, also from a checkpoint."""

import numpy as np
import pytest
import torch

from magicfuse_ros.evaluation.protocol import SegFormerRecipe
from magicfuse_ros.evaluation.segformer import SegFormerB0
from magicfuse_ros.evaluation.segformer_training import train_segformer

CPU = torch.device("cpu")


def sample(split):
    """A picture that is red left of `split` and blue right of it, and its classes."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :split, 0] = picture[:, split:, 2] = 220
    labels = np.zeros((64, 64), np.uint8)
    labels[:, split:] = 1
    labels[:2] = 255
    return picture, labels


def recipe(steps, rate=2.0e-4):
    return SegFormerRecipe(steps=steps, batch=2, learning_rate=rate, size=(64, 64))


def test_it_learns_two_colours():
    told = []
    samples = [sample(split) for split in (16, 32, 48)]
    segment = train_segformer(samples, 2, recipe(25), device=CPU, progress=told.append)
    picture, labels = sample(32)
    found = segment(picture)
    assert found.shape == (64, 64)
    assert (found == labels)[labels != 255].mean() > 0.9
    assert told[-1].startswith("SegFormer: step 25 of 25, loss 0.")


def test_the_same_samples_give_the_same_network_and_leave_the_random_state_alone():
    state = torch.get_rng_state()
    one, two = (train_segformer([sample(32)], 2, recipe(1), device=CPU) for _ in range(2))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(one(noise), two(noise))
    assert torch.equal(torch.get_rng_state(), state)


def test_it_begins_with_a_local_checkpoint_of_other_classes(tmp_path):
    trained = SegFormerB0(5)
    trained.network.save_pretrained(tmp_path)
    loaded = SegFormerB0(3, tmp_path)
    same = {name: value for name, value in trained.state_dict().items() if "classifier" not in name}
    for name, value in loaded.state_dict().items():
        if name in same:
            assert torch.equal(value, same[name]), name
    assert loaded.network.config.num_labels == 3
    with pytest.raises(ValueError, match="holds no config"):
        SegFormerB0(3, tmp_path / "elsewhere")


def test_nothing_to_learn_from_is_refused():
    picture, labels = sample(32)
    for samples in ([], [(picture, np.full_like(labels, 255))]):
        with pytest.raises(ValueError, match="no training image has labels"):
            train_segformer(samples, 2, recipe(1), device=CPU)
