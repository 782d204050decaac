"""Options that commands share."""

from __future__ import annotations

from commands import registered


def test_unknown_adapter(generate):
    assert "unknown adapter 'flxu'; did you mean 'flux'?" in generate("--adapter", "flxu")


def test_unknown_policy(generate):
    assert "unknown policy 'uvr-relaesed'; did you mean 'uvr-released'?" in generate("--policy", "uvr-relaesed")


def test_unknown_detector(generate):
    assert "did you mean 'anchor'?" in generate("--detector", "ancor")


def test_options_that_the_pipeline_does_not_take(generate):
    class Plain:
        def __call__(self, prompt, generator=None):
            raise AssertionError("not reached")

        def to(self, *_):
            return self

    with registered(uvr_models={"plain": lambda name: Plain()}):
        assert "--steps: Plain takes no num_inference_steps" in generate(model="plain:x")


def test_what_the_pipeline_refuses(generate):
    assert "max_sequence_length" in generate("--max-tokens", 100_000)


def test_unknown_device_and_size(generate):
    assert "--device nope" in generate("--device", "nope")
    assert "--size" in generate("--size", "huge")
