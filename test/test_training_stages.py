"""What every stage trains, and what it leaves alone."""

import dataclasses
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, SMALL_REFINED
from support.training_runs import data_folder, on_one_thread, run_folder, write_recipe
from torch.nn import functional

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.checkpoint import PARTS, REFINER
from magicfuse_ros.model.config import DiffusionConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import UNKNOWN, Label, LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training import train_stage as train_stage_module
from magicfuse_ros.training.autoencoder_stage import AutoencoderLoss, AutoencoderStage
from magicfuse_ros.training.branches import BranchLoss, BranchStage
from magicfuse_ros.training.losses import sobel, visual_loss, weighted_l1
from magicfuse_ros.training.mkf import MkfLoss, MkfStage
from magicfuse_ros.training.recipe import STAGES, read_recipe
from magicfuse_ros.training.refine import RefineLoss, RefineStage
from magicfuse_ros.training.stage import encode
from magicfuse_ros.training.train_stage import train_stage

OF_STAGE = {
    "autoencoder": {"encoder", "decoder"},
    "psi": {"psi"},
    "phi": {"phi"},
    "mkf": {"fusion"},
    "refine": {"refiner"},
}
WITH_CONFIG = [
    *((name, SMALL_REFINED) for name in STAGES),
    *((name, SMALL_PAPER) for name in STAGES if name != "refine"),
]
SEVERAL_STEPS = dataclasses.replace(
    SMALL_FEW_STEP, diffusion=DiffusionConfig(steps=4, spacing="trailing", clip_z0=True)
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from on_one_thread()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def few_samples(monkeypatch):
    """Fit the autoencoder's linear path to fewer crops than in a real training."""
    monkeypatch.setattr(train_stage_module, "_LINEAR_SAMPLES", 20)


def make(config=SMALL_REFINED):
    torch.manual_seed(3)
    return MagicFuse.from_config(config)


def make_stage(name, model, **options):
    if name == "autoencoder":
        return AutoencoderStage(model, AutoencoderLoss(**options))
    if name == "mkf":
        return MkfStage(model, MkfLoss(**options))
    if name == "refine":
        return RefineStage(model, RefineLoss(**options))
    return BranchStage(model, name, BranchLoss(**options))


def batch(count=2, size=32):
    """Smooth pictures with a warm rectangle; the first sample has no infrared."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    clean = functional.interpolate(coarse, size=(size, size), mode="bilinear")
    infrared = clean.mean(dim=1, keepdim=True) * 0.5
    labels = torch.full((count, size, size), 4)
    labels[:, 8:20, 4:12] = 2
    labels[:, :, :2] = UNKNOWN
    infrared[:, :, 8:20, 4:12] = 0.9
    infrared[0] = 0.0
    return {
        "clean": clean,
        "degraded": 0.3 * clean,
        "infrared": infrared,
        "labels": labels,
        "thermal_weight": (labels == 2).float(),
        "has_clean": torch.ones(count),
        "has_infrared": torch.tensor([0.0] + [1.0] * (count - 1)),
        "annotated": torch.ones(count),
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def snapshot(model):
    return {
        part: {k: v.clone() for k, v in getattr(model, part).state_dict().items()}
        for part in model.parts
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_learns_and_changes_only_its_own_parts(name):
    model = make()
    stage = make_stage(name, model)
    before = snapshot(model)
    rate = 1e-2 if name == "refine" else 3e-3  # its trunk has random weights here
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(8):
        loss, scalars = stage(batch(), seeded())
        assert all(bool(torch.isfinite(value)) for value in scalars.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.9 * losses[0], losses
    changed = {
        part
        for part, tensors in before.items()
        if any(not torch.equal(t, getattr(model, part).state_dict()[k]) for k, t in tensors.items())
    }
    assert changed == OF_STAGE[name]


@pytest.mark.parametrize(
    ("name", "config"), WITH_CONFIG, ids=lambda value: getattr(value, "name", value)
)
def test_every_parameter_of_the_stage_has_a_gradient_and_no_other(name, config):
    model = make(config)
    stage = make_stage(name, model, **({"steps": 2} if name == "mkf" else {}))
    stage(batch(2, 16), seeded())[0].backward()
    for part in model.parts:
        of_stage = part in OF_STAGE[name]
        for path, parameter in getattr(model, part).named_parameters():
            # DistributedDataParallel waits for the gradient of every trained parameter.
            learns = of_stage and not path.startswith("more_classes.")
            assert (parameter.grad is not None) == learns
            assert parameter.requires_grad == learns or not of_stage


@pytest.mark.parametrize("name", STAGES)
def test_the_loss_depends_on_the_batch_and_the_generator_alone(name):
    stage = make_stage(name, make())
    torch.manual_seed(0)
    first = stage(batch(), seeded(1))[0]
    torch.manual_seed(1)
    assert torch.equal(first, stage(batch(), seeded(1))[0])


@pytest.mark.parametrize("name", STAGES)
def test_a_sheet_is_a_picture(name):
    model = make()
    with torch.no_grad():
        sheet = make_stage(name, model).sheet(batch(), seeded())
    assert sheet.shape[0] == 3
    assert sheet.shape[2] == 64
    assert 0.0 <= float(sheet.min()) <= float(sheet.max()) <= 1.0


def test_training_a_stage_rewrites_its_files_alone(tmp_path, data, cache, few_samples):
    output = run_folder(tmp_path / "run", SMALL_REFINED)
    files = [f"{part}.safetensors" for part in (*PARTS, REFINER)]
    before = {name: (output / "model" / name).read_bytes() for name in files}
    for stage in STAGES:
        recipe = read_recipe(write_recipe(tmp_path, stage))
        assert train_stage(recipe, data, cache, output, stage)
        after = {name: (output / "model" / name).read_bytes() for name in files}
        changed = {name.split(".")[0] for name in files if before[name] != after[name]}
        assert changed == OF_STAGE[stage]
        before = after
        # Only a model whose every part has learned counts as trained.
        assert MagicFuse.from_pretrained(output / "model").config.trained == (stage == "refine")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_stage_trains_in_sixteen_bits(tmp_path, data, cache, few_samples, device):
    output = run_folder(tmp_path / "run", SMALL_REFINED)
    for stage in STAGES:
        loop = {"steps": 2, "precision": "bfloat16", "compile": stage == "psi"}
        recipe = read_recipe(write_recipe(tmp_path, stage, loop=loop))
        assert train_stage(recipe, data, cache, output, stage)
    assert torch.cuda.is_available() == (device == "cuda")
    model = MagicFuse.from_pretrained(output / "model")
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_an_anchored_autoencoder_goes_on_from_the_model_and_remembers_it(tmp_path, data, cache):
    linear = dataclasses.replace(SMALL_FEW_STEP.autoencoder, linear_path=True, downsamples=0)
    output = run_folder(tmp_path / "run", dataclasses.replace(SMALL_FEW_STEP, autoencoder=linear))
    before = snapshot(MagicFuse.from_pretrained(output / "model"))
    recipe = write_recipe(tmp_path, "autoencoder", autoencoder={"anchor": 0.5})
    assert train_stage(read_recipe(recipe), data, cache, output, "anchored")
    after = snapshot(MagicFuse.from_pretrained(output / "model"))
    names = before["encoder"]
    moved = max(float((after["encoder"][k] - before["encoder"][k]).abs().max()) for k in names)
    assert 0.0 < moved < 0.02  # a few small steps, and not PCA
    state = load_file(output / "anchored.state.safetensors")
    for name, tensor in before["encoder"].items():
        assert any(
            key.endswith(f"anchor.{name}") and torch.equal(kept, tensor)
            for key, kept in state.items()
        )
    assert {path.stem for path in (output / "model").glob("*.safetensors")} == set(PARTS)


def test_the_anchor_holds_the_latents_where_they_were():
    model = make()
    stage = make_stage("autoencoder", model, anchor=2.0)
    loss, scalars = stage(batch(), seeded())
    assert float(scalars["latent/drift"]) == 0.0
    torch.testing.assert_close(loss, make_stage("autoencoder", model)(batch(), seeded())[0])
    images = stage._images(batch())
    with torch.no_grad():
        latent = model.encoder(images)
        model.encoder.outputs.bias.add_(0.3)
        moved = model.encoder(images)
    loss, scalars = stage(batch(), seeded())
    apart = functional.mse_loss(moved, latent)
    torch.testing.assert_close(scalars["latent/drift"], apart.sqrt() / moved.std())
    free = make_stage("autoencoder", model)(batch(), seeded())[0]
    torch.testing.assert_close(loss, free + 2.0 * apart)


def test_autoencoder_sees_clean_degraded_and_infrared_images():
    given = batch(4)
    images = make_stage("autoencoder", make())._images(given)
    assert images.shape == (4 + 2 + 3, 3, 32, 32)
    assert torch.equal(images[:4], given["clean"])
    assert torch.equal(images[4:6], given["degraded"][::2])
    assert torch.equal(images[6:], given["infrared"][1:].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 20), (1.0, 1000, 1000), (0.5, 440, 560)]
)
def test_share_of_timesteps_at_pure_noise(share, low, high):
    t = make_stage("psi", make(), pure_noise_share=share)._timesteps(1000, seeded())
    last = t == 999
    assert low <= int(last.sum()) <= high
    rest = t[~last].float()
    if share < 1.0:
        assert float(rest.mean()) == pytest.approx(499.0, abs=40.0)
        assert float(rest.min()) < 20.0


@pytest.mark.parametrize("kind", ["eps", "v", "z0"])
def test_a_perfect_prediction_gives_back_the_clean_latent(kind):
    model = make()
    stage = make_stage("phi", model)
    stage._prediction = kind
    given = batch()
    truth = {}

    class Oracle(torch.nn.Module):
        """Predicts from the clean latent."""

        def forward(self, _condition, noisy, t):
            a, s = diffusion.training_coefficients(stage._alpha_bars, t)
            gain = a if model.config.diffusion.scale_inputs else 1.0
            eps = (noisy / gain - a * truth["z0"]) / s
            return diffusion.training_target(truth["z0"], eps, a, s, kind)

    truth["z0"] = encode(model, given["infrared"].expand(-1, 3, -1, -1), seeded())
    stage.trained["phi"] = Oracle()
    t = torch.tensor([600, 20])
    prediction, target, estimate = stage._estimate(given, t, seeded())
    torch.testing.assert_close(prediction, target, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(estimate, truth["z0"], atol=2e-3, rtol=1e-3)


def test_branch_objective_is_the_sum_of_its_weighted_terms():
    stage = make_stage("psi", make(), latent=0.5, pixel=2.0, texture=0.25, thermal=3.0)
    given = batch()
    loss, scalars = stage(given, seeded())
    expected = 0.5 * scalars["latent"] + 2.0 * scalars["pixel"] + 0.25 * scalars["texture"]
    torch.testing.assert_close(loss.detach(), expected)
    generator = seeded()
    t = stage._timesteps(2, generator)
    with torch.no_grad():
        decoded = stage.frozen["decoder"](stage._estimate(given, t, generator)[2])
    weight = 1.0 + 3.0 * given["thermal_weight"][:, None]
    torch.testing.assert_close(scalars["pixel"], weighted_l1(decoded, given["clean"], weight))
    edges = weighted_l1(sobel(decoded), sobel(given["clean"]), weight)
    torch.testing.assert_close(scalars["texture"], edges)


def test_what_is_shown_colder_inside_boxes_weighs_more():
    stage = make_stage("psi", make(), latent=0.0, pixel=1.0, thermal=3.0, colder=2.0)
    given = batch()
    pixel = stage(given, seeded())[1]["pixel"]
    generator = seeded()
    t = stage._timesteps(2, generator)
    with torch.no_grad():
        decoded = stage.frozen["decoder"](stage._estimate(given, t, generator)[2])
    thermal = given["thermal_weight"][:, None]
    share = (decoded < given["clean"]).float().mean(dim=1, keepdim=True)  # of the three channels
    assert 0.0 < float((share * thermal).sum()) < float(thermal.sum())
    weight = (1.0 + 3.0 * thermal) * (1.0 + 2.0 * thermal * share)
    torch.testing.assert_close(pixel, weighted_l1(decoded, given["clean"], weight))


def test_noise_share_out_of_range_is_named():
    with pytest.raises(ConfigError, match=r"branch\.pure_noise_share is 1\.5"):
        BranchLoss(pure_noise_share=1.5)


def watch(model, calls):
    """Record, for each call of the networks, the timestep and whether it may have a gradient."""
    for name in ("denoise", "fuse"):
        method = getattr(model, name)

        def watched(*args, name=name, method=method):
            calls.append((name, args[-1], torch.is_grad_enabled()))
            return method(*args)

        setattr(model, name, watched)


def test_gradient_only_at_the_stop_step():
    """Algorithm 1, lines 9-12."""
    model = make(SEVERAL_STEPS)
    stage = make_stage("mkf", model)
    calls = []
    watch(model, calls)
    stops = set()
    given = batch(1, 16)
    for seed in range(12):
        calls.clear()
        loss, _ = stage(given, seeded(seed))
        steps = [t for name, t, _ in calls if name == "fuse"]
        assert steps == [999, 749, 499, 249][: len(steps)]
        stops.add(steps[-1])
        for name, t, gradient in calls:
            assert gradient == (name == "fuse" and t == steps[-1])
        assert loss.requires_grad
    assert len(stops) == 4


def test_the_gradient_takes_earlier_steps_as_given():
    """As if the states that reach the stop step were constants."""
    model = make(SEVERAL_STEPS)
    stage = make_stage("mkf", model, segmentation=1.0)
    seed = next(s for s in range(50) if int(torch.randint(0, 4, (1,), generator=seeded(s))) == 2)
    stage(batch(), seeded(seed))[0].backward()
    expected = {name: p.grad.clone() for name, p in model.fusion.named_parameters()}
    fuse, calls = model.fuse, []

    def constant(*args):
        calls.append(args[-1])
        w, state = fuse(*args)
        return (w, state) if len(calls) == 3 else (w.detach(), state.detach())

    model.fuse = constant
    model.fusion.zero_grad()
    with torch.enable_grad():
        stage(batch(), seeded(seed))[0].backward()
    assert len(calls) == 3
    for name, parameter in model.fusion.named_parameters():
        assert torch.equal(parameter.grad, expected[name])
    assert any(float(gradient.abs().max()) > 0.0 for gradient in expected.values())


def test_stop_steps_are_uniform_and_the_noise_of_both_streams_is_one():
    """Algorithm 1, lines 6-8."""
    model = make(SEVERAL_STEPS)
    stage = make_stage("mkf", model)
    stops = Counter()

    def denoise(_condition, z_psi, z_phi, t):
        if t == 999:
            assert torch.equal(z_psi, z_phi)
        return torch.zeros_like(z_psi), torch.zeros_like(z_phi)

    def fuse(psi, _phi, _z_f, state, _t):
        return torch.ones_like(psi.z0), state

    model.denoise, model.fuse = denoise, fuse
    image = batch(1, 16)["degraded"]
    for seed in range(200):
        stops[stage._run(image, seeded(seed), to_end=False).t] += 1
    assert sorted(stops) == [249, 499, 749, 999]
    # Chi-squared with 3 degrees of freedom: 16.3 is the 99.9 % point.
    assert sum((count - 50.0) ** 2 / 50.0 for count in stops.values()) < 16.3
    assert stage._run(image, seeded(), to_end=True).t == 249


def test_segmentation_loss_is_the_weighted_cross_entropy_of_known_pixels():
    """Eq. 16 with class weights."""
    weights = tuple(0.5 + 0.25 * k for k in range(12))
    model = make()
    stage = make_stage("mkf", model, class_weights=weights)
    given, seen = batch(), {}
    run = stage._run

    def remember(*args, **options):
        seen["step"] = run(*args, **options)
        return seen["step"]

    stage._run = remember
    _, scalars = stage(given, seeded())
    logits = functional.interpolate(
        seen["step"].state, size=(32, 32), mode="bilinear", align_corners=False
    )
    expected = functional.cross_entropy(
        logits, given["labels"], torch.tensor(weights), ignore_index=UNKNOWN
    )
    torch.testing.assert_close(scalars["segmentation"], expected.detach())


def test_pixels_of_unknown_class_alone_give_no_segmentation_loss():
    given = batch() | {"labels": torch.full((2, 32, 32), UNKNOWN)}
    loss, scalars = make_stage("mkf", make())(given, seeded())
    assert float(scalars["segmentation"]) == 0.0
    assert bool(torch.isfinite(loss))


def test_absence_is_asked_for_outside_of_boxes_alone():
    model = make()
    stage = make_stage("mkf", model)
    boxed = [model.labels.id_of(name) for name in ("person", "car", "bike")]
    logits = torch.randn(2, 12, 6, 8, generator=seeded())
    outside = torch.zeros(2, 6, 8, dtype=torch.bool)
    assert float(stage._semantics._absence(logits, outside)) == 0.0
    outside[0, 2:4] = True
    p = logits.softmax(dim=1)[:, boxed].sum(dim=1)
    torch.testing.assert_close(
        stage._semantics._absence(logits, outside), -torch.log(1.0 - p)[outside].mean()
    )


@pytest.mark.parametrize(("annotated", "asked"), [((1.0, 1.0), True), ((0.0, 0.0), False)])
def test_images_without_boxes_say_nothing_of_absence(annotated, asked):
    given = batch() | {"annotated": torch.tensor(annotated)}
    stage = make_stage("mkf", make(), absence=1.0)
    assert (float(stage(given, seeded())[1]["absence"]) > 0.0) is asked


def test_unaided_training_leaves_both_branches_out():
    model = make()
    stage = make_stage("mkf", model, unaided=True)
    loss, _ = stage(batch(), seeded())
    loss.backward()
    assert any(bool(p.grad.any()) for p in model.fusion.parameters())
    for parameter in (*model.psi.parameters(), *model.phi.parameters()):
        parameter.data.fill_(0.1)
    torch.testing.assert_close(stage(batch(), seeded())[0], loss)


def test_where_networks_left_out_what_they_were_not_sure_of_nothing_is_likely():
    """Not where it has a label or a hot spot, and less than where it is known."""
    model, given = make(), batch()
    given["annotated"] = torch.zeros(2)
    given["labels"] = torch.full_like(given["labels"], UNKNOWN)
    given["labels"][:, :8] = 4  # road
    given["thermal_weight"] = torch.zeros_like(given["thermal_weight"])
    given["thermal_weight"][:, 24:] = 1.0
    stage = make_stage("mkf", model, absence=1.0, doubt=0.25)
    empty = stage._semantics._empty(given)
    assert not empty[:, :8].any()
    assert bool((empty[:, 8:24] == 0.25).all())
    assert not empty[:, 24:].any()
    given["annotated"] = torch.ones(2)
    assert bool((stage._semantics._empty(given)[:, 8:24] == 1.0).all())


def test_a_set_of_boxed_classes_alone_has_no_absence():
    labels = LabelSet("people", (Label(0, "person", (1, 2, 3), thermal=True),))
    stage = make_stage("mkf", MagicFuse(SMALL_FEW_STEP, labels), absence=1.0)
    loss, scalars = stage(batch() | {"labels": torch.full((2, 32, 32), UNKNOWN)}, seeded())
    assert float(scalars["absence"]) == 0.0
    assert bool(torch.isfinite(loss))


def test_weights_of_phase_2_are_applied():
    stage = make_stage(
        "mkf", make(), contrast=6.0, texture=10.0, color=5.0, segmentation=2.0, absence=3.0
    )
    loss, scalars = stage(batch(), seeded())
    assert float(scalars["absence"]) > 0.0
    weights = {"contrast": 6.0, "texture": 10.0, "color": 5.0, "segmentation": 2.0, "absence": 3.0}
    expected = sum(weight * scalars[name] for name, weight in weights.items())
    torch.testing.assert_close(loss.detach(), expected)


def test_contrast_weighs_more_inside_boxes_of_thermal_objects():
    stage = make_stage("mkf", make(), thermal=3.0)
    given = batch()
    contrast = stage(given, seeded())[1]["contrast"]
    with torch.no_grad():
        step = stage._run(given["degraded"], seeded(), to_end=False)
        latents = (step.z0_fused, step.z0_psi, step.z0_phi)
        magimg, enhanced, infrared = (stage.frozen["decoder"](z) for z in latents)
    weight = 1.0 + 3.0 * given["thermal_weight"][:, None]
    wanted = visual_loss(magimg, enhanced, infrared, weight)["contrast"]
    torch.testing.assert_close(contrast, wanted)
    unweighted = visual_loss(magimg, enhanced, infrared)["contrast"]
    assert float(contrast) != pytest.approx(float(unweighted))


def test_it_is_cold_where_labels_and_boxes_know_of_nothing_thermal():
    stage = make_stage("mkf", make(), cold=True)
    given = batch()  # people in the labels, cars around them, two unknown columns
    assert stage._model.labels.thermal_ids() == (2,)
    unknown = given["labels"] == UNKNOWN
    assert torch.equal(stage._cold(given)[:, 0], given["labels"] != 2)
    # An image without boxes says nothing of what it does not label.
    given["annotated"] = torch.tensor([0.0, 1.0])
    cold = stage._cold(given)[:, 0]
    assert not bool(cold[0][unknown[0]].any())
    assert bool(cold[1][unknown[1]].all())
    assert float(stage(given, seeded())[1]["contrast"]) != pytest.approx(
        float(make_stage("mkf", make())(given, seeded())[1]["contrast"])
    )


def test_w_r_is_logged_inside_and_outside_of_thermal_regions():
    model = make()
    stage = make_stage("mkf", model)
    person = model.labels.id_of("person")

    def fuse(psi, _phi, _z_f, state, _t):
        state = torch.zeros_like(state)
        state[:, person, :, :4] = 1.0
        # The trained parts must be in the graph.
        return 0.9 + 0.0 * model.fusion.normout.weight.sum() * psi.z0, state

    model.fuse = fuse
    _, scalars = stage(batch(), seeded())
    assert float(scalars["w_r/inside"]) == pytest.approx(0.4)  # τ
    assert float(scalars["w_r/outside"]) == pytest.approx(0.9)
    assert float(scalars["w_r/outside_std"]) == pytest.approx(0.0, abs=1e-5)


def test_class_weights_must_fit_the_label_set():
    with pytest.raises(ConfigError, match=r"mkf\.class_weights has 2 entries; accepted: 12"):
        make_stage("mkf", make(), class_weights=(1.0, 2.0))


def test_the_objects_head_learns_what_boxes_know_and_is_not_exported(tmp_path, data, cache):
    model = make()
    stage = make_stage("phi", model, objects=1.0, latent=0.0, thermal=2.0, ring=0.5)
    optimizer = torch.optim.Adam(stage.parameters(), 1e-2)
    given = batch(2)
    losses = []
    for _ in range(20):
        loss, scalars = stage(given, seeded())
        assert torch.equal(loss.detach(), scalars["objects"])  # nothing else has a weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(scalars["objects"]))
    assert losses[-1] < 0.6 * losses[0], losses

    output = run_folder(tmp_path / "run")
    recipe = write_recipe(
        tmp_path, "phi", loop={"steps": 1}, branch={"objects": 0.5, "latent": 1.0}
    )
    assert train_stage(read_recipe(recipe), data, cache, output, "phi")
    assert {path.stem for path in (output / "model").glob("*.safetensors")} == set(PARTS)
    MagicFuse.from_pretrained(output / "model")


def test_what_nobody_knows_does_not_reach_the_objects_head():
    stage = make_stage("phi", make(), objects=1.0)
    given = batch(2)
    given["labels"] = torch.full_like(given["labels"], UNKNOWN)
    given["annotated"] = torch.zeros(2)
    assert float(stage(given, seeded())[1]["objects"]) == 0.0
    # Outside the boxes of an annotated image it is known that nothing is there.
    given["annotated"] = torch.ones(2)
    assert float(stage(given, seeded())[1]["objects"]) > 0.0


def test_the_ring_around_boxes_has_its_share_of_the_weight():
    def loss_of(ring):
        stage = make_stage("phi", make(), latent=0.0, pixel=1.0, thermal=5.0, ring=ring)
        wrong_outside = batch(2)
        wrong_outside["infrared"][:, :, 20:24, 4:12] = 0.9  # hot below the box, within six pixels
        return float(stage(wrong_outside, seeded())[0].detach())

    assert loss_of(1.0) != loss_of(0.0)


def test_images_without_infrared_teach_phi_objects_and_nothing_else():
    given = batch(2)
    options = {"latent": 1.0, "pixel": 1.0, "thermal": 2.0, "objects": 0.5}

    def terms(**changed):
        stage = make_stage("phi", make(), **options)
        scalars = stage(given | changed, seeded())[1]
        return {name: float(value) for name, value in scalars.items()}

    known = terms()
    changed = given["infrared"].clone()
    changed[0] = 0.7  # of the sample that has none
    unmoved = terms(infrared=changed)  # it is in z_t, which the head's features come from
    assert (unmoved["latent"], unmoved["pixel"]) == (known["latent"], known["pixel"])
    labels = given["labels"].clone()
    labels[0] = 2
    with_people = terms(labels=labels)
    assert with_people["objects"] != known["objects"]
    assert (with_people["latent"], with_people["pixel"]) == (known["latent"], known["pixel"])
    nothing = terms(has_infrared=torch.zeros(2))
    assert (nothing["latent"], nothing["pixel"]) == (0.0, 0.0)
    assert nothing["objects"] > 0.0


@pytest.mark.parametrize("kind", ["eps", "v", "z0"])
def test_a_batch_without_any_infrared_is_no_division_by_zero(kind):
    config = dataclasses.replace(
        SMALL_FEW_STEP, phi=dataclasses.replace(SMALL_FEW_STEP.phi, prediction=kind)
    )
    stage = make_stage("phi", make(config), objects=1.0)
    loss, scalars = stage(batch(2) | {"has_infrared": torch.zeros(2)}, seeded())
    assert float(scalars["latent"]) == 0.0
    assert torch.isfinite(loss)
