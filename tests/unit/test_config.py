import json

import pytest
from pydantic import ValidationError

from nnunetv2_genseg.config import ENVIRONMENT_VARIABLE, GenSegConfig, MaskConfig, checked, resolve


def resolved_from(path, preset=None):
    return resolve(preset, {ENVIRONMENT_VARIABLE: str(path)})


def written(folder, text, name="genseg.json"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_set_gives_the_defaults():
    assert resolve(environment={}) == GenSegConfig()
    assert resolve(environment={ENVIRONMENT_VARIABLE: "  "}) == GenSegConfig()


@pytest.mark.parametrize(
    "settings, key, near",
    [
        ({"mixing": {"gama": 1.0}}, "mixing.gama", "gamma"),
        ({"mask": {}}, "mask", "masks"),
        ({"schedule": {"warm_up": 0.1}}, "schedule.warm_up", "warmup"),
    ],
)
def test_unknown_key_is_an_error_that_names_the_near_one(settings, key, near):
    with pytest.raises(ValueError, match=f"{key}: unknown key; did you mean .*{near}"):
        resolve(settings, {})


def test_unknown_key_unlike_any_other_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"mixing.zzzzzz: unknown key; known here: share, sources, gamma"):
        resolve({"mixing": {"zzzzzz": 1}}, {})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixing": {"gamma": "1.0"}}, r"mixing\.gamma: .*number.*found '1\.0'"),
        ({"feedback": {"enabled": 1}}, r"feedback\.enabled: .*bool.*found 1"),
        ({"feedback": {"interval": 1.5}}, r"feedback\.interval: .*integer.*found 1\.5"),
        ({"masks": 3}, r"masks: .*found 3"),
        ({"conditioning": {"mode": "fog"}}, r"conditioning\.mode: .*'mask', 'tissue' or 'differential'.*found 'fog'"),
    ],
)
def test_wrong_type_is_an_error_that_names_what_was_found(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(settings, {})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixing": {"gamma": 0.0}}, r"mixing\.gamma: .*greater than 0.*found 0\.0"),
        ({"masks": {"control_points": 3}}, r"masks\.control_points: .*greater than or equal to 4.*found 3"),
        ({"masks": {"growth": 0.5}}, r"masks\.growth: .*less than 0\.5.*found 0\.5"),
        ({"seed": -1}, r"seed: .*greater than or equal to 0.*found -1"),
        ({"mixing": {"gamma": float("nan")}}, r"mixing\.gamma"),
    ],
)
def test_value_out_of_range_is_an_error_that_says_the_range(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(settings, {})


def test_integers_are_taken_for_numbers():
    assert resolve({"mixing": {"gamma": 2}}, {}).mixing.gamma == 2.0


def test_every_fault_is_listed():
    with pytest.raises(ValueError, match=r"(?s)mixing\.gamma.*seed") as raised:
        resolve({"mixing": {"gamma": -1.0}, "seed": -1}, {})
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize("warmup, ramp, tail", [(0.5, 0.2, 0.3), (0.9, 0.9, 0.9)])
def test_a_schedule_without_room_for_synthetic_pairs_is_refused(warmup, ramp, tail):
    with pytest.raises(ValueError, match=r"(?s)schedule: .*warmup \+ ramp \+ tail is .*smaller than 1"):
        resolve({"schedule": {"warmup": warmup, "ramp": ramp, "tail": tail}}, {})


def test_a_full_schedule_is_accepted():
    settings = {"schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.99}, "feedback": {"enabled": False}}
    assert resolve(settings, {}).schedule.tail == 0.99


def test_the_spread_of_shapes_that_are_not_learned_is_refused():
    assert resolve({"masks": {"source": "learned", "spread": 0.2}}, {}).masks.spread == 0.2
    with pytest.raises(ValueError, match=r"spread is not read by masks\.source 'deformation'; remove it"):
        resolve({"masks": {"spread": 0.2}}, {})


def test_feedback_that_would_never_begin_is_refused():
    assert resolve({"feedback": {"start": 0.8}}, {}).feedback_span == (0.8, 0.85)
    with pytest.raises(ValueError, match=r"start at 0.9 of the training .* and end at 0.85 \(feedback.end or schedule.tail\)"):
        resolve({"feedback": {"start": 0.9}}, {})
    with pytest.raises(ValueError, match=r"start at 0.7 of the training \(feedback.start or schedule.warmup\) and end at 0.6"):
        resolve({"schedule": {"warmup": 0.7}, "feedback": {"end": 0.6}}, {})
    off = {"schedule": {"warmup": 0.7}, "feedback": {"end": 0.6, "enabled": False}}
    assert not resolve(off, {}).feedback.enabled


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"nnUNet_genseg_config names .*gone\.json.*not a file"):
        resolved_from(tmp_path / "gone.json")


@pytest.mark.parametrize("name, text", [("a.json", "{not json"), ("a.yaml", "a: [1"), ("a.json", "mixing: {gamma: 2}")])
def test_file_that_cannot_be_parsed_is_an_error(tmp_path, name, text):
    with pytest.raises(ValueError, match="neither valid JSON nor YAML"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize("name, text", [("a.json", "[1, 2]"), ("a.yaml", "- 1"), ("a.yaml", "gamma"), ("a.json", "3")])
def test_file_without_a_mapping_is_an_error(tmp_path, name, text):
    with pytest.raises(ValueError, match="must hold a mapping"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", '{"mixing": {"gamma": 3.0}, "feedback": {"enabled": false}}'),
        ("a.yaml", "mixing: {gamma: 3.0}\nfeedback:\n  enabled: false\n"),
        ("a.yml", "mixing:\n  gamma: 3\nfeedback: {enabled: no}\n"),
    ],
)
def test_json_and_yaml_are_read(tmp_path, name, text):
    config = resolved_from(written(tmp_path, text, name))
    assert config.mixing.gamma == 3.0
    assert config.feedback.enabled is False
    assert config.masks == MaskConfig()


@pytest.mark.parametrize(
    "name, text, key",
    [
        ("a.yaml", "mixing: {gamma: 0.5}\nseed: 1\nmixing: {share: 0.5}\n", "mixing"),
        ("a.yaml", "mixing: {gamma: 0.5, gamma: 2.0}", "gamma"),
        ("a.json", '{"mixing": {"gamma": 0.5}, "mixing": {"share": 0.5}}', "mixing"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error(tmp_path, name, text, key):
    with pytest.raises(ValueError, match=f"{name} is neither valid JSON nor YAML: {key} is there twice; join the two"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize("number", ["1e-4", "1E-4", ".1e-3", "+1.e-4", "1.0e-4", "0.0001"])
def test_yaml_takes_numbers_with_exponents(tmp_path, number):
    assert resolved_from(written(tmp_path, f"generator: {{learning_rate: {number}}}", "a.yaml")).generator.learning_rate == 1e-4


def test_yaml_takes_words_that_begin_like_numbers_for_words(tmp_path):
    assert resolved_from(written(tmp_path, "generator: {pretrained: 1e4_cases}", "a.yaml")).generator.pretrained == "1e4_cases"


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    assert resolved_from(written(tmp_path, "", "a.yaml")) == GenSegConfig()


def test_process_environment_is_looked_up_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(written(tmp_path, '{"seed": 5}')))
    assert resolve().seed == 5


def test_file_beats_preset_key_by_key(tmp_path):
    path = written(tmp_path, '{"mixing": {"gamma": 3.0}}')
    config = resolved_from(path, {"mixing": {"gamma": 2.0, "share": 0.5}, "seed": 4})
    assert (config.mixing.gamma, config.mixing.share, config.seed) == (3.0, 0.5, 4)


def test_preset_is_not_changed_by_the_file(tmp_path):
    preset = {"mixing": {"gamma": 2.0}}
    resolved_from(written(tmp_path, '{"mixing": {"gamma": 3.0}}'), preset)
    assert preset == {"mixing": {"gamma": 2.0}}


def test_error_names_the_file_at_fault(tmp_path):
    with pytest.raises(ValueError, match=r"genseg\.json"):
        resolved_from(written(tmp_path, '{"mixing": {"gamma": -1}}'))


def test_settings_survive_a_json_file():
    config = resolve({"mixing": {"gamma": 0.1}, "conditioning": {"mode": "tissue"}, "seed": 9}, {})
    assert checked(GenSegConfig, json.loads(json.dumps(config.to_json())), "test") == config


def test_differences_name_the_settings_that_differ():
    first = resolve({"mixing": {"gamma": 2.0}}, {})
    second = resolve({"seed": 3}, {})
    assert first.differences(second) == ["mixing.gamma: 2.0, there 1.0", "seed: 0, there 3"]
    assert first.differences(first) == []


def test_what_the_feedback_takes_may_be_changed_on_the_way():
    cheaper = {"patches": 1, "method": "last_layers", "interval": 50}
    assert resolve({}, {}).differences(resolve({"feedback": cheaper}, {})) == []
    other = {"parameters": "weights", "cases": 0.3, "learning_rate": 0.1}
    assert len(resolve({}, {}).differences(resolve({"feedback": other | cheaper}, {}))) == 3


def test_configuration_is_frozen():
    config = GenSegConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.mixing.gamma = 2.0
    assert (config.seed, config.mixing.gamma) == (0, 1.0)


def test_every_setting_is_documented():
    for name, topic in GenSegConfig.model_fields.items():
        fields = getattr(topic.annotation, "model_fields", None)
        for key, field in ({name: topic} if fields is None else fields).items():
            assert field.description, f"{name}.{key}"
