"""Models of diffusers: a tiny one, saved here, read back; the noise table and its checks."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from thermodiff import account
from thermodiff.learned.adapters import adapt
from thermodiff.learned.images import Images
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.pretrained import NoiseTable, from_diffusers
from thermodiff.learned.training import train
from thermodiff.schedules import VP

TABLE = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def test_table_gives_its_own_steps_back():
    table = NoiseTable(TABLE)
    t = torch.from_numpy(np.asarray(VP().time(table.lam)))
    np.testing.assert_allclose(table(t).numpy(), np.arange(1000), atol=1e-6)
    assert table.window == pytest.approx((float(VP().lam(1.0)), np.log(0.9999 / 0.0001)))  # VP ends before the table
    assert NoiseTable(TABLE[:800]).window == pytest.approx((np.log(TABLE[799] / (1 - TABLE[799])), np.log(0.9999 / 0.0001)))
    middle = torch.tensor([float(VP().time(0.5 * (table.lam[300] + table.lam[301])))], dtype=torch.float64)
    assert table(middle).item() == pytest.approx(300.5, abs=1e-6)


def test_table_refuses_what_it_does_not_cover():
    with pytest.raises(ValueError, match=r"VP cover log-SNR -8.0497 \.\.\. 9.2102, it was asked at .* state a window"):
        NoiseTable(TABLE)(torch.tensor([1e-4, 0.5], dtype=torch.float64))


def changed(k: int, value: float) -> np.ndarray:
    table = TABLE.copy()
    table[k] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(5, TABLE[4]), "it repeats at step 5"),
        (changed(700, TABLE[300]), "it rises at step 700"),
        (changed(-1, 0.0), "must lie between 0 and 1, without these"),
        (changed(0, 1.0), "must lie between 0 and 1, without these"),
        (TABLE[::-1], "it rises at step 1 "),
        (TABLE[:100], "end near the noise"),
        (changed(3, np.nan), "at least 2 finite numbers"),
        ([0.5], "at least 2 finite numbers"),
    ],
)
def test_refused_tables(table, message):
    with pytest.raises(ValueError, match=message):
        NoiseTable(table)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


@pytest.fixture
def saved(diffusers, tmp_path):
    """A tiny model with classes, its scheduler, and the folder that holds them."""

    def save(scheduler="DDPMScheduler", unet_options=None, **options):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            **{"num_class_embeds": 3, **(unet_options or {})},
        )  # fmt: skip
        plan = getattr(diffusers, scheduler)(**options)
        unet.save_pretrained(tmp_path / "unet", safe_serialization=True)
        plan.save_pretrained(tmp_path / "scheduler")
        return unet.eval(), plan

    return save


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "predicts"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_a_saved_model_gives_the_same_at_every_step(saved, tmp_path, kind, predicts):
    unet, plan = saved(beta_schedule="squaredcos_cap_v2", num_train_timesteps=50, prediction_type=kind)
    net = from_diffusers(tmp_path)
    assert (net.predicts, net.noise, net.classes) == (predicts, VP(), 3)
    abar = plan.alphas_cumprod.double().numpy()
    steps = np.array([0, 7, 23, 49])
    t = torch.from_numpy(np.asarray(VP().time(np.log(abar[steps] / (1.0 - abar[steps])))))
    x, y = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        expected = unet(x, torch.from_numpy(steps), class_labels=y).sample
        torch.testing.assert_close(net(x, t, y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0},
            r"EulerDiscreteScheduler with timestep_type='continuous' gives its model the time ln\(sigma\) / 4, no place",
        ),
        *(
            (name, {"use_flow_sigmas": True}, f"{name} with use_flow_sigmas=True gives its model the times of a flow, no pl")
            for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
        ),
    ],
)
def test_times_that_are_no_places_in_the_table_are_refused(saved, tmp_path, scheduler, options, message):
    saved(scheduler, **options)
    with pytest.raises(ValueError, match=message):
        from_diffusers(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_samples_elsewhere_in_the_table_is_read(saved, tmp_path):
    """Continuous times of noise, unlike those of "v", are places in the table."""
    saved("EulerDiscreteScheduler", timestep_type="continuous", use_karras_sigmas=True)
    assert from_diffusers(tmp_path).predicts == "eps"


@pytest.mark.filterwarnings("ignore")
def test_refused_folders(saved, tmp_path):
    with pytest.raises(ValueError, match="there is no file .*config.json"):
        from_diffusers(tmp_path)
    saved()
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ValueError, match="no UNet2DModel can be built of .* no file named .*; save the model again"):
        from_diffusers(tmp_path)
    weights.write_bytes(content)
    for file, entry, message in (
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [0.1, 0.0, 0.9, 0.9]},
            "scheduler: the noise table .* repeats",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "prediction_type 'noise' is not one of"),
        ("scheduler/scheduler_config.json", {"prediction_type": ["a"]}, r"prediction_type \['a'\] is not one of"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "foo"}, "gives no DDPMScheduler .NotImplementedError: foo"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "gives no DDPMScheduler .TypeError"),
        ("unet/config.json", {"down_block_types": ["Foo", "DownBlock2D"]}, "no UNet2DModel can be built of config.json"),
        ("unet/config.json", {"in_channels": "x"}, "no UNet2DModel can be built of config.json and .*TypeError"),
        ("scheduler/scheduler_config.json", {"_class_name": "Nothing"}, "names the scheduler 'Nothing'"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "only UNet2DModel is read"),
    ):
        path = tmp_path / file
        text = path.read_text()
        path.write_text(json.dumps({**json.loads(text), **entry}))
        with pytest.raises(ValueError, match=message):
            from_diffusers(tmp_path)
        path.write_text("{")
        with pytest.raises(ValueError, match="is not JSON"):
            from_diffusers(tmp_path)
        path.write_text(text)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_the_model(saved, tmp_path):
    saved()
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    good = load_file(path)
    first = min(name for name in good if name.startswith("mid_block"))
    fewer = {name: value for name, value in good.items() if not name.startswith("mid_block")}
    number = len(good) - len(fewer) - 1
    for tensors, message in (
        (fewer, f"the weights lack {first} and {number} more; save the model again"),
        ({**good, "extra": torch.zeros(1)}, "the weights hold, beside those of the model, extra; save the model again"),
        ({**good, first: torch.full_like(good[first], float("nan"))}, f"hold nan or infinite numbers, in {first}; save"),
        ({**good, first: torch.zeros(1)}, "no UNet2DModel can be built of config.json and weights"),
    ):
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            from_diffusers(tmp_path)
    save_file(good, path, {"format": "pt"})
    from_diffusers(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_classes_needs_one(saved, tmp_path):
    saved()
    x, t = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    net = from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="needs a class and was called without a label; say which .* label=0"):
        net(x, t)
    with pytest.raises(ValueError, match=r"labels 3 \.\.\. 3, failed: .* labels 0 \.\.\. 2 and has none for \"not stated\""):
        net(x, t, torch.tensor([3, 3]))
    second = from_diffusers(tmp_path, label=2)
    assert second.arguments["classes"] == second.module.class_embedding.num_embeddings == 3
    with torch.no_grad():
        torch.testing.assert_close(second(x, t), net(x, t, torch.tensor([2, 2])))
    with pytest.raises(ValueError, match="label must be at most 2, got 3"):
        from_diffusers(tmp_path, label=3)
    images = np.random.default_rng(0).standard_normal((4, 1, 8, 8))
    ledger = account(LearnedDiffusion(second, images, second.noise), nodes=2, samples=4, rng=0, lam=(-5.0, 5.0))
    assert np.isfinite(ledger.total("neural").value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"trained_betas": [0.05] * 40}], ids=["to -10", "from -1.9 to 2.9"])
def test_the_announced_window_can_be_measured(saved, tmp_path, options):
    saved(**options)
    net = from_diffusers(tmp_path, label=0)
    images = np.random.default_rng(0).standard_normal((4, 1, 8, 8))
    model = LearnedDiffusion(net, images, net.noise)
    assert np.isfinite(account(model, nodes=2, samples=4, rng=0, lam=net.window).total("neural").value)
    with pytest.raises(
        ValueError, match=r"VP ends at lam = -8.0\d+, t = 1, and no network is asked at later times; begin at"
    ):
        account(model, nodes=2, samples=4, rng=0, lam=(-10.0, 2.0))


@pytest.mark.filterwarnings("ignore")
def test_classes_are_trained_one_at_a_time(saved, tmp_path):
    saved()
    images = Images(np.random.default_rng(0).random((6, 1, 8, 8)), labels=[0, 1, 2, 0, 1, 2])
    options = {"steps": 2, "batch": 4, "rng": 0, "lam": (-6.0, 6.0), "progress": False}
    for label in (None, 1):
        with pytest.raises(ValueError, match=r'0 \.\.\. 2 and none for "not stated", .* adapt\(net, labels='):
            train(from_diffusers(tmp_path, label=label), images, VP(), **options)
    net = adapt(from_diffusers(tmp_path), labels="y", label=1)
    before = net.module.module.class_embedding.weight.detach().clone()
    train(net, images, VP(), **options)
    changed = (net.module.module.class_embedding.weight != before).any(1)
    assert (changed.tolist(), net.predicts, net.window) == ([False, True, False], "eps", (-6.0, 6.0))


@pytest.mark.filterwarnings("ignore")
def test_times_that_are_learned_step_by_step(saved, tmp_path):
    saved(unet_options={"time_embedding_type": "learned", "num_train_timesteps": 1000})
    with pytest.raises(ValueError, match="time_embedding_type='learned', a vector for each step and none between them"):
        from_diffusers(tmp_path)


def test_a_table_of_text_is_refused():
    with pytest.raises(TypeError, match=r"the noise table must be numbers, got \['a', 'b'\]"):
        NoiseTable(["a", "b"])  # pyright: ignore[reportArgumentType]
