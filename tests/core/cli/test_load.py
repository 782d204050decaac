"""From the MODEL argument to a pipeline."""

from __future__ import annotations

from commands import copy_of


def test_a_path_that_is_no_checkpoint(generate, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "no such folder" in generate(model=tmp_path / "nowhere")
    assert "model_index.json" in generate(model=tmp_path / "empty")
    assert "this is a file" in generate(model=tmp_path / "file")
    assert "did you mean 'zoo'?" in generate(model="zo:flux")


def test_unknown_model_class(generate, checkpoint, tmp_path):
    model = copy_of(checkpoint, tmp_path / "unknown", {"_class_name": "NoSuchPipeline"})
    assert "NoSuchPipeline" in generate(model=model)


def test_damaged_weights(generate, checkpoint, tmp_path):
    model = copy_of(checkpoint, tmp_path / "damaged")
    (model / "transformer").unlink()
    (model / "transformer").mkdir()
    (model / "transformer" / "config.json").symlink_to(checkpoint / "transformer" / "config.json")
    name = "diffusion_pytorch_model.safetensors"
    (model / "transformer" / name).write_bytes((checkpoint / "transformer" / name).read_bytes()[:1000])
    assert str(model) in generate(model=model)
