"""Every remedy against the fault it mends, which is first shown to be there."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import mmcv
import numpy as np
import torch
from mmcv.utils import ext_loader
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.logging import HistoryBuffer
from mmengine.registry import FUNCTIONS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils.dl_utils import misc
from PIL import Image
from torchvision.transforms import functional as F

from mim_plugins.apps.photos import photo_crops
from mim_plugins.mmpretrain import remedies

from ..warm import context, run_script

STATES = {status.name: status.state for status in remedies.status()}


def run(code: str, **environment: str) -> str:
    returned, output = run_script("-c", code, env=environment)
    assert returned == 0, output
    return output


def test_states_are_known() -> None:
    assert list(STATES) == [remedy.name for remedy in remedies.REMEDIES]
    assert set(STATES.values()) <= {"active", "not needed", "switched off", "broken"}


FAULTS = "from mim_plugins.mmpretrain import remedies; " + (
    "print([s.name for s in remedies.status() if s.state == 'switched off']); "
    "print([r.name for r in remedies.REMEDIES if r.is_broken()])"
)


def test_faults_are_there_without_and_gone_with_the_remedies() -> None:
    active = [name for name, state in STATES.items() if state == "active"]
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: "all"}).strip().splitlines()
    assert off == broken == str(active)
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: ""}).strip().splitlines()
    assert off == "[]"
    # AmpOptimWrapper itself still refuses; its name in the registry is what changes.
    assert broken in ("[]", "['amp_on_cpu']")


def test_one_remedy_can_be_switched_off() -> None:
    if STATES["adjust_hue"] != "active":
        pytest.skip(f"adjust_hue is {STATES['adjust_hue']} with the installed mmcv and numpy")
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: "adjust_hue"}).strip().splitlines()
    assert off == "['adjust_hue']"
    assert "adjust_hue" in broken


def test_unknown_remedy_is_refused() -> None:
    code = "import mim_plugins.mmpretrain"
    returned, output = run_script("-c", code, env={remedies.SWITCH: "hue"})
    assert returned == 1
    assert f"{remedies.SWITCH} may name 'all' or" in output
    assert "got hue" in output


def test_it_is_said_once() -> None:
    output = run("import mim_plugins.mmpretrain, mim_plugins.mmpretrain.remedies as r; r.apply()")
    assert output.count("mim_plugins mends upstream") == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_mmcv_is_looked_for_as_before_python_3_14(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (misc, ext_loader):
        monkeypatch.setattr(module, "pkgutil", SimpleNamespace())
    remedy = next(remedy for remedy in remedies.REMEDIES if remedy.name == "find_loader")
    assert remedy.is_broken()
    remedy.mend()
    assert not remedy.is_broken()
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path)])  # where Python looks for mmcv._ext
    if compiled:
        (tmp_path / "_ext.py").touch()
    assert misc.mmcv_full_available() is ext_loader.check_ops_exist() is compiled


def test_collate_accepts_the_scope_of_a_base_config(tmp_path: Path) -> None:
    collate = FUNCTIONS.get("default_collate")
    batch = [{"inputs": torch.ones(2)}, {"inputs": torch.zeros(2)}]
    for arguments in ({}, {"_scope_": "mmpretrain"}):
        expected = default_collate(batch)["inputs"]
        assert torch.equal(collate(batch, **arguments)["inputs"], expected)
    pickle.loads(pickle.dumps(collate))  # spawned workers
    config = tmp_path / "config.py"
    config.write_text("_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'")
    assert Config.fromfile(config).train_dataloader.collate_fn._scope_ == "mmpretrain"


def test_history_survives_loading(tmp_path: Path) -> None:
    path = tmp_path / "history.pth"
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save({"history": history, "scalar": np.float64(2.5), "lr": np.int64(3)}, path)
    loaded = CheckpointLoader.load_checkpoint(str(path), "cpu")
    assert loaded["history"].statistics("mean") == 2.0
    assert loaded["history"].statistics("max") == 3.0
    assert loaded["scalar"] == 2.5
    history.update(5.0)
    assert history.statistics("current") == 5.0


def needs_safe_load() -> None:
    if STATES["safe_load"] != "active":
        pytest.skip(f"safe_load is {STATES['safe_load']}: this mmengine has its own way")


def load(path: Path) -> Any:
    return CheckpointLoader.load_checkpoint(str(path), "cpu", logger="silent")


def test_history_of_a_stock_run_loads(tmp_path: Path) -> None:
    """Written without the plugin, with bound methods; only mmengine may load it."""
    needs_safe_load()
    code = """
import sys, numpy as np, torch
from mmengine.logging import HistoryBuffer
arrays = [np.zeros((2, 3), kind) for kind in ("?", "i1", "u2", ">i4", "f2", ">f8", "c16")]
arrays += [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(400.0), np.array(3)]
torch.save({"history": HistoryBuffer([1.0, 3.0], [1, 1]), "arrays": arrays,
            "scalars": [np.float32(0.5), np.bool_(True), np.int64(-3)]}, sys.argv[1])
"""
    path, again = tmp_path / "stock.pth", tmp_path / "again.pth"
    returned, output = run_script("-c", code, path)
    assert returned == 0, output
    expected = torch.load(path, weights_only=False)
    allowed = set(torch.serialization.get_safe_globals())
    for _ in range(2):
        loaded = load(path)
        assert type(loaded["history"]) is HistoryBuffer
        assert [type(array) for array in loaded["history"].data] == [np.ndarray, np.ndarray]
        assert loaded["history"].statistics("mean") == 2.0
        assert loaded["scalars"] == expected["scalars"]
        assert [type(s) for s in loaded["scalars"]] == [type(s) for s in expected["scalars"]]
        for array, true in zip(loaded["arrays"], expected["arrays"], strict=True):
            np.testing.assert_array_equal(array, true, strict=True)
            assert array.dtype.byteorder == true.dtype.byteorder
            assert array.flags.f_contiguous == true.flags.f_contiguous
        torch.save(loaded, again)  # stock again, not of classes of the plugin
        assert type(torch.load(again, weights_only=False)["arrays"][0]) is np.ndarray
        path = again
    assert set(torch.serialization.get_safe_globals()) == allowed
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


# Files that no library writes, opcode by opcode: GLOBAL, TEXT, NUMBER and TUPLE push; REDUCE
# calls, NEWOBJ makes an instance, BUILD sets its state.
REDUCE, NEWOBJ, BUILD, NONE, SETITEM = b"R", b"\x81", b"b", b"N", b"s"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def raw(data: bytes) -> bytes:
    return name("_codecs", "encode") + of(text(data.decode("latin1")), text("latin1")) + REDUCE


NDARRAY, GETATTR = name("numpy", "ndarray"), name("builtins", "getattr")
EMPTY = (
    name("numpy._core.multiarray", "_reconstruct") + of(NDARRAY, of(number(0)), text("b")) + REDUCE
)
HISTORY = name("mmengine.logging.history_buffer", "HistoryBuffer")
FALSE, TRUE = b"\x89", b"\x88"


def dtype(spec: str, *names: bytes, flags: int = 0, order: str = "<", size: int = -1) -> bytes:
    made = name("numpy", "dtype") + of(text(spec), FALSE, TRUE) + REDUCE
    fields = names or (NONE, NONE)
    state = (number(3), text(order), NONE, *fields, number(size), number(-1), number(flags))
    return made + of(*state) + BUILD


def filled(kind: bytes, data: bytes, count: int = 1) -> bytes:
    return EMPTY + of(number(1), of(number(count)), kind, FALSE, data) + BUILD


def history(*state: tuple[str, bytes]) -> bytes:
    made = HISTORY + b")" + NEWOBJ + b"}"
    return made + b"".join(text(key) + value + SETITEM for key, value in state) + BUILD


F8 = dtype("f8")
LOGS = filled(F8, raw(bytes(8)))
POINTER = raw(struct.pack("<Q", 0x4141414141414141))
OBJECT_FIELD = (text("a") + b"\x85", b"}" + text("a") + of(dtype("O8"), number(0)) + SETITEM)
CRAFTED = {
    "an object array by ndarray": NDARRAY + of(of(number(1)), text("O"), POINTER) + NEWOBJ,
    "a call of ndarray": NDARRAY + of(of(number(1)), text("O"), POINTER) + REDUCE,
    "an object array by _reconstruct": name("numpy._core.multiarray", "_reconstruct")
    + of(NDARRAY, of(number(1)), text("O"))
    + REDUCE
    + of(number(1), of(number(1)), dtype("O8", order="|", flags=63), FALSE, POINTER)
    + BUILD,
    "another class by _reconstruct": name("numpy._core.multiarray", "_reconstruct")
    + of(name("collections", "OrderedDict"), of(number(0)), text("b"))
    + REDUCE,
    "an array larger than its data": filled(F8, raw(bytes(8)), count=1 << 20),
    "an array of negative size": filled(F8, raw(bytes(8)), count=-1),
    "an array filled from a list": filled(F8, b"]" + number(1) + b"a"),
    "an array filled twice": LOGS + of(number(1), of(number(1)), F8, FALSE, raw(bytes(8))) + BUILD,
    "an array without a dtype": filled(text("f8"), raw(bytes(8))),
    "an object scalar": name("numpy._core.multiarray", "scalar")
    + of(dtype("O8", order="|", flags=63), text("x"))
    + REDUCE,
    "a scalar of few bytes": name("numpy._core.multiarray", "scalar")
    + of(F8, raw(bytes(4)))
    + REDUCE,
    "dtype O": name("numpy", "dtype") + of(text("O"), FALSE, TRUE) + REDUCE,
    "a structured dtype": name("numpy", "dtype") + of(text("f8,O"), FALSE, TRUE) + REDUCE,
    "a dtype of text": dtype("U8"),
    "a dtype with an object field": dtype("f8", *OBJECT_FIELD),
    "a dtype with flags": dtype("f8", flags=63),
    "a dtype with a size": dtype("f8", size=1 << 20),
    "a dtype that is made by NEWOBJ": name("numpy", "dtype") + of(text("O")) + NEWOBJ,
    "getattr of a method": GETATTR + of(HISTORY, text("register_statistics")) + REDUCE,
    "getattr of a dunder": GETATTR + of(HISTORY, text("__init__")) + REDUCE,
    "getattr of a tensor": GETATTR + of(name("torch", "Tensor"), text("mean")) + REDUCE,
    "a call of a statistic": GETATTR + of(HISTORY, text("min")) + REDUCE + b")" + REDUCE,
    "a call of HistoryBuffer": HISTORY + of(b"]", b"]") + REDUCE,
    "a history that overwrites a statistic of the class": history(
        ("max_length", number(9)),
        ("_log_history", LOGS),
        ("_count_history", LOGS),
        ("statistics_methods", b"}" + text("mean") + name("torch", "device") + SETITEM),
    ),
    "a history with another attribute": history(
        ("max_length", number(9)),
        ("_log_history", LOGS),
        ("_count_history", LOGS),
        ("update", name("torch", "device")),
    ),
    "a history of lists": history(
        ("max_length", number(9)), ("_log_history", b"]"), ("_count_history", b"]")
    ),
    "a history without counts": history(("max_length", number(9)), ("_log_history", LOGS)),
    "a history of two lengths": history(
        ("max_length", number(9)),
        ("_log_history", LOGS),
        ("_count_history", filled(F8, raw(bytes(16)), count=2)),
    ),
    "os.system": name("os", "system") + of(text("echo unsafe")) + REDUCE,
}


def write_crafted(payload: bytes, path: Path) -> Path:
    """A checkpoint file whose pickle is ``payload``."""
    stock = io.BytesIO()
    torch.save({}, stock)
    with zipfile.ZipFile(stock) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            data = b"\x80\x02" + payload + b"."
            target.writestr(entry, data if entry.endswith("data.pkl") else source.read(entry))
    return path


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_checkpoints_are_refused(kind: str, tmp_path: Path) -> None:
    needs_safe_load()
    path = write_crafted(CRAFTED[kind], tmp_path / "crafted.pth")
    methods = dict(HistoryBuffer._statistics_methods)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load(path)
    assert HistoryBuffer._statistics_methods == methods


def test_the_parts_of_the_crafted_checkpoints_load(tmp_path: Path) -> None:
    """What the files above do wrong is what they are refused for."""
    needs_safe_load()
    smallest = GETATTR + of(HISTORY, text("min")) + REDUCE
    good = history(
        ("max_length", number(9)),
        ("_log_history", LOGS),
        ("_count_history", filled(dtype("i8"), raw(struct.pack("<q", 5)))),
        ("statistics_methods", b"}" + text("min") + smallest + SETITEM),
    )
    loaded = load(write_crafted(good, tmp_path / "good.pth"))
    assert (loaded.statistics("min"), loaded.data[1].tolist()) == (0.0, [5])


def test_a_crafted_checkpoint_does_not_crash_the_interpreter(tmp_path: Path) -> None:
    """An object array over an address: hashing its element was a segmentation fault."""
    needs_safe_load()
    array = NDARRAY + of(of(number(1)), text("O"), POINTER) + NEWOBJ
    payload = name("collections", "OrderedDict") + of(array) + REDUCE
    path = write_crafted(payload, tmp_path / "crash.pth")
    code = f"""
import mim_plugins.mmpretrain
from mmengine.runner import CheckpointLoader, Runner
try:
    CheckpointLoader.load_checkpoint({str(path)!r}, "cpu")
except ValueError as error:
    print(error)
"""
    assert "call of numpy.ndarray" in run(code)


@pytest.mark.parametrize("hue", np.linspace(-0.5, 0.5, 21))
def test_hue_agrees_with_torchvision(hue: float) -> None:
    rgb = photo_crops("flower", 1, 32, True, np.random.default_rng(0))[0]
    bgr = np.asarray(rgb)[..., ::-1]
    expected = np.asarray(F.adjust_hue(rgb, float(hue)))
    actual = mmcv.adjust_hue(np.ascontiguousarray(bgr), float(hue), backend="pillow")[..., ::-1]
    np.testing.assert_array_equal(actual, expected)
    # OpenCV converts colours a little differently, so its hue is compared closely, not exactly.
    opencv = mmcv.adjust_hue(np.ascontiguousarray(bgr), float(hue), backend="cv2")[..., ::-1]
    assert np.abs(opencv.astype(int) - expected.astype(int)).mean() < 6


def test_color_jitter_of_the_stock_pipelines_never_fails() -> None:
    from mmpretrain.datasets.transforms import ColorJitter

    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    image = np.asarray(Image.new("RGB", (8, 8), (200, 30, 90)))
    for _ in range(100):
        assert jitter({"img": image})["img"].shape == (8, 8, 3)


def test_workers_that_are_not_forked_have_the_remedies(tmp_path: Path) -> None:
    """From Python 3.14 on workers start anew; what they unpickle imports the adapter."""
    (tmp_path / "flower").mkdir()
    for index, crop in enumerate(photo_crops("flower", 16, 32, True, np.random.default_rng(0))):
        crop.save(tmp_path / "flower" / f"{index}.png")
    loader = Runner.build_dataloader(
        {
            "batch_size": 16,
            "num_workers": 1,
            "multiprocessing_context": context(),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
            "dataset": {
                "type": "mmpretrain.CustomDataset",
                "data_root": str(tmp_path),
                "pipeline": [
                    {"type": "mmpretrain.LoadImageFromFile"},
                    {"type": "mmpretrain.ColorJitter", "hue": 0.5},  # negative hues overflow
                    {"type": "mmpretrain.PackInputs"},
                ],
            },
        },
        seed=0,
    )
    (batch,) = loader
    assert batch["inputs"].shape == (16, 3, 32, 32)


def test_amp_falls_back_to_float32() -> None:
    if STATES["amp_on_cpu"] != "active":
        pytest.skip("there is an accelerator")
    from mmengine.optim import OptimWrapper
    from mmengine.registry import OPTIM_WRAPPERS

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(
        {
            "type": "AmpOptimWrapper",
            "loss_scale": "dynamic",
            "optimizer": optimizer,
            "accumulative_counts": 2,
        }
    )
    assert type(wrapper) is OptimWrapper
    assert wrapper._accumulative_counts == 2
