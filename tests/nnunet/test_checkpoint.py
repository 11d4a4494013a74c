import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from nnunetv2_kd.errors import KDError
from nnunetv2_kd.nnunet.checkpoint import allowed_globals, read_checkpoint
from nnunetv2_kd.nnunet.files import sha256


def checkpoint(**more):
    return {
        "network_weights": {"w": torch.ones(2)},
        "init_args": {"configuration": "3d_fullres", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "current_epoch": 3,
        **more,
    }


class RunsACommand:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_what_nnunet_logs_can_be_read(tmp_path):
    """Its lists hold NumPy numbers; its arguments a device."""
    file = tmp_path / "c.pth"
    logging = {"dice": [np.float32(0.5), np.float64(0.25)], "epochs": [np.int64(3)], "flag": np.bool_(True)}
    torch.save(checkpoint(logging=logging), file)
    assert read_checkpoint(file)["logging"] == logging


def test_numbers_of_another_numpy_can_be_read(tmp_path):
    """NumPy 2 names the module of its numbers anew; torch 2.5 knows a function by its own name only."""
    plain, other = tmp_path / "plain.pth", tmp_path / "other.pth"
    torch.save(checkpoint(logging={"dice": [np.float64(0.25)]}), plain)
    names = [b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"]
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(other, "w") as target:
        for part in source.namelist():
            content = source.read(part)
            if part.endswith("data.pkl"):
                (held,) = (name for name in names if name in content)
                (wanted,) = (name for name in names if name != held)
                content = content.replace(held, wanted)
            target.writestr(part, content)
    assert read_checkpoint(other)["logging"] == {"dice": [0.25]}
    for allowed in allowed_globals():
        assert hasattr(allowed, "__module__"), "torch 2.5 takes no pairs of function and name"
        assert hasattr(allowed, "__qualname__")


def test_code_is_refused_and_does_not_run(tmp_path):
    file, sign = tmp_path / "c.pth", tmp_path / "ran"
    torch.save(checkpoint(extra=RunsACommand(sign)), file)
    with pytest.raises(KDError, match=r"carries more than plain data \((posix|os|nt)\.system\).*--trust for a command"):
        read_checkpoint(file)
    assert not sign.exists()


def test_code_runs_only_when_asked_for(tmp_path):
    file, sign = tmp_path / "c.pth", tmp_path / "ran"
    torch.save(checkpoint(extra=RunsACommand(sign)), file)
    read_checkpoint(file, trust=True)
    assert sign.exists()


@pytest.mark.parametrize("kind", ["empty", "truncated", "halved", "text", "image", "raw pickle"])
@pytest.mark.parametrize("trust", [False, True])
def test_files_that_are_no_checkpoint(tmp_path, kind, trust):
    file = tmp_path / "c.pth"
    torch.save(checkpoint(network_weights={"w": torch.zeros(10000)}), file)
    content = {
        "empty": b"",
        "truncated": file.read_bytes()[:2000],
        "halved": file.read_bytes()[: file.stat().st_size // 2],  # torch seeks before its start: an OSError
        "text": b"this is not a checkpoint\n" * 10,
        "image": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "raw pickle": pickle.dumps({"a": 1}),
    }[kind]
    file.write_bytes(content)
    with pytest.raises(KDError, match=r"c\.pth"):
        read_checkpoint(file, trust)


def test_missing_file(tmp_path):
    with pytest.raises(KDError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pth")


def test_weights_alone_are_no_checkpoint(tmp_path):
    file = tmp_path / "c.pth"
    torch.save({"network_weights": {}}, file)
    with pytest.raises(KDError, match="it lacks init_args, trainer_name"):
        read_checkpoint(file)
    torch.save([1, 2], file)
    with pytest.raises(KDError, match="it holds a list"):
        read_checkpoint(file)


def test_sha256(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_flipped_bytes_of_a_tensor_are_reported_by_the_checksum_that_torch_does_not_look_at(tmp_path):
    file = tmp_path / "c.pth"
    torch.save(checkpoint(network_weights={"w": torch.full((5000,), 0.5)}), file)
    content = bytearray(file.read_bytes())
    at = content.find(torch.full((100,), 0.5).numpy().tobytes())
    for place in range(at + 40, at + 140):
        content[place] ^= 1
    file.write_bytes(bytes(content))
    assert not (torch.load(file, weights_only=False)["network_weights"]["w"] == 0.5).all()  # without a word
    for trust in (False, True):
        with pytest.raises(KDError, match=r"damaged: the checksum of \S+ in it differs\).*Copy it again"):
            read_checkpoint(file, trust)


def test_a_compressed_archive_is_none_of_torchs(tmp_path):
    file = tmp_path / "c.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", b"\x80\x02" + bytes(10**6))
    with pytest.raises(KDError, match="compressed, which torch's files are not"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network_weights": None}, "network_weights: expected tensors by name, found NoneType"),
        ({"network_weights": {}}, "network_weights: expected tensors"),
        ({"network_weights": {"w": 3}}, "network_weights: contains something other than tensors"),
        ({"init_args": {}}, "init_args: expected the trainer's arguments"),
        ({"init_args": None}, "init_args: expected"),
        ({"init_args": {"configuration": "2d", "plans": [1]}}, "init_args: plans: expected keys"),
        ({"trainer_name": None}, "trainer_name: expected a name"),
        ({"current_epoch": "many"}, "current_epoch: expected a whole number, found many"),
        ({"optimizer_state": [1]}, "optimizer_state: expected keys with values, found list"),
        ({"kd": "mine"}, "kd: expected a record"),
        ({"inference_allowed_mirroring_axes": (7,)}, r"inference_allowed_mirroring_axes: expected axes, found \(7,\)"),
    ],
)
def test_contents_of_a_wrong_type(tmp_path, change, message):
    file = tmp_path / "c.pth"
    torch.save(checkpoint(**change), file)
    with pytest.raises(
        KDError, match=f"c.pth is not as nnU-Net writes a checkpoint:\n  - {message}(.|\n)*mend it so"
    ) as refusal:
        read_checkpoint(file, mend="mend it so")
    assert refusal.value.__cause__ is None
