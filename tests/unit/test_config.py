import json
import time
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from nnunetv2_genseg.config import GenSegConfig, GenSegError, MaskConfig, checked, resolve
from nnunetv2_genseg.config.environment import OVERRIDES, SETTINGS, discovery_folder, external_trainers


@contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10 * seconds  # on a busy machine


def resolved_from(path, preset=None):
    return resolve(preset, {SETTINGS: str(path)})


def written(folder, text, name="genseg.json"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_set_gives_the_defaults():
    assert resolve(environment={}) == GenSegConfig()
    assert resolve(environment={SETTINGS: "  "}) == GenSegConfig()


@pytest.mark.parametrize(
    "settings, key, near",
    [
        ({"mixing": {"shares": 1.0}}, "mixing.shares", "share"),
        ({"generator": {"diffusion": {"sampling_step": 1}}}, "generator.diffusion.sampling_step", "sampling_steps"),
        ({"mask": {}}, "mask", "masks"),
        ({"schedule": {"warm_up": 0.1}}, "schedule.warm_up", "warmup"),
    ],
)
def test_unknown_key_is_an_error_that_names_the_near_one(settings, key, near):
    with pytest.raises(GenSegError, match=f"{key}: unknown key; did you mean .*{near}"):
        resolve(settings, {})


def test_unknown_key_unlike_any_other_lists_the_known_ones():
    with pytest.raises(GenSegError, match=r"mixing.zzzzzz: unknown key; known here: share, sources"):
        resolve({"mixing": {"zzzzzz": 1}}, {})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixing": {"share": "1.0"}}, r"mixing\.share: .*number.*found '1\.0'"),
        ({"mixing": {"sources": {"redraw": "all"}}}, r"mixing\.sources\.redraw: .*number.*found 'all'"),
        ({"feedback": {"enabled": 1}}, r"feedback\.enabled: .*bool.*found 1"),
        ({"feedback": {"interval": 1.5}}, r"feedback\.interval: .*integer.*found 1\.5"),
        ({"masks": 3}, r"masks: .*found 3"),
        ({"feedback": {"parameters": "fog"}}, r"feedback\.parameters: .*'architecture', 'weights' or 'policy'.*found 'fog'"),
    ],
)
def test_wrong_type_is_an_error_that_names_what_was_found(settings, message):
    with pytest.raises(GenSegError, match=message):
        resolve(settings, {})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mixing": {"share": 0.0}}, r"mixing\.share: .*greater than 0.*found 0\.0"),
        ({"mixing": {"sources": {}}}, r"mixing\.sources: .*at least one above 0.*found \{\}"),
        ({"mixing": {"sources": {"redraw": -1.0}}}, r"mixing\.sources: .*0 or more.*found \{'redraw': -1\.0\}"),
        ({"mixing": {"sources": {"redraw": float("inf")}}}, r"mixing\.sources: .*finite.*found \{'redraw': inf\}"),
        ({"mixing": {"sources": {"redraw": float("nan")}}}, r"mixing\.sources: .*finite.*found \{'redraw': nan\}"),
        ({"deformation": {"displacement": 0.3}}, r"deformation\.displacement: .*less than or equal to 0\.2.*found 0\.3"),
        ({"deformation": {"scaling": 0.9}}, r"deformation\.scaling: .*less than 0\.9.*found 0\.9"),
        ({"redraw": {"tissue_classes": 1}}, r"redraw\.tissue_classes: .*greater than or equal to 2.*found 1"),
        ({"seed": -1}, r"seed: .*greater than or equal to 0.*found -1"),
        ({"mixing": {"share": float("nan")}}, r"mixing\.share"),
    ],
)
def test_value_out_of_range_is_an_error_that_says_the_range(settings, message):
    with pytest.raises(GenSegError, match=message):
        resolve(settings, {})


def test_integers_are_taken_for_numbers():
    assert resolve({"mixing": {"share": 1}}, {}).mixing.share == 1.0


def test_every_fault_is_listed():
    with pytest.raises(GenSegError, match=r"(?s)mixing\.share.*seed") as raised:
        resolve({"mixing": {"share": -1.0}, "seed": -1}, {})
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize("warmup, ramp, tail", [(0.5, 0.2, 0.3), (0.9, 0.9, 0.9)])
def test_a_schedule_without_room_for_synthetic_pairs_is_refused(warmup, ramp, tail):
    with pytest.raises(GenSegError, match=r"(?s)schedule: .*warmup \+ ramp \+ tail is .*smaller than 1"):
        resolve({"schedule": {"warmup": warmup, "ramp": ramp, "tail": tail}}, {})


def test_a_full_schedule_is_accepted():
    settings = {"schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.99}, "feedback": {"enabled": False}}
    assert resolve(settings, {}).schedule.tail == 0.99


def test_new_shapes_that_no_source_can_show_are_refused():
    assert resolve({"masks": {"source": "shape_vae"}}, {}).masks.source == "shape_vae"
    settings = {"masks": {"source": "shape_vae"}, "mixing": {"sources": {"deformation": 1.0}}}
    with pytest.raises(GenSegError, match=r"masks\.source is 'shape_vae', but no source in mixing\.sources .*add `redraw`"):
        resolve(settings, {})


def test_settings_of_another_family_are_refused():
    settings = {"generator": {"name": "diffusion", "diffusion": {"sampling_steps": 4}}}
    assert resolve(settings, {}).generator.diffusion.sampling_steps == 4
    with pytest.raises(GenSegError, match=r"generator\.diffusion are not read by generator 'gan'; remove them"):
        resolve({"generator": {"diffusion": {"sampling_steps": 4}}}, {})


def test_sources_without_weight_are_left_out():
    assert resolve({"mixing": {"sources": {"deformation": 1, "redraw": 0}}}, {}).mixing.sources == {"deformation": 1.0}


@pytest.mark.parametrize(
    "cases, message",
    [
        ([], "name at least one case, and each once"),
        (["a", "a"], "name at least one case, and each once"),
        (0.6, "above 0 and at most 0.5"),
        (0.0, "above 0 and at most 0.5"),
    ],
)
def test_cases_are_a_fraction_or_names(cases, message):
    with pytest.raises(GenSegError, match=message):
        resolve({"feedback": {"cases": cases}}, {})


def test_named_cases_do_not_rotate():
    named = resolve({"feedback": {"cases": ["a", "b"]}}, {}).feedback
    assert (named.cases, named.parts) == (["a", "b"], 1)
    assert resolve({"feedback": {"cases": 0.2, "rotations": 3}}, {}).feedback.parts == 3
    with pytest.raises(GenSegError, match=r"feedback\.rotations draws cases, but feedback\.cases names them"):
        resolve({"feedback": {"cases": ["a"], "rotations": 2}}, {})


def test_the_learning_rate_of_weights_is_lower_unless_it_is_set():
    for name, rate in (("architecture", 3e-3), ("policy", 3e-3), ("weights", 1e-5)):
        assert resolve({"feedback": {"parameters": name}}, {}).feedback.rate == rate
    assert resolve({"feedback": {"parameters": "weights", "learning_rate": 0.1}}, {}).feedback.rate == 0.1


def test_feedback_that_would_never_begin_is_refused():
    assert resolve({"feedback": {"start": 0.8}}, {}).feedback_span == (0.8, 0.85)
    with pytest.raises(GenSegError, match=r"start at 0.9 of the training .* and end at 0.85 \(schedule.tail\)"):
        resolve({"feedback": {"start": 0.9}}, {})
    late = {"schedule": {"warmup": 0.7, "tail": 0.15}, "feedback": {"start": 0.0}}
    assert resolve(late, {}).feedback_span == (0.7, 0.85), "not before the warm-up is over"
    assert not resolve({"feedback": {"start": 0.9, "enabled": False}}, {}).feedback.enabled


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(GenSegError, match=r"nnUNet_genseg_config names .*gone\.json.*not a file"):
        resolved_from(tmp_path / "gone.json")


@pytest.mark.parametrize("name, text", [("a.json", "{not json"), ("a.yaml", "a: [1"), ("a.json", "mixing: {share: 1}")])
def test_file_that_cannot_be_parsed_is_an_error(tmp_path, name, text):
    with pytest.raises(GenSegError, match="neither valid JSON nor YAML"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize("name, text", [("a.json", "[1, 2]"), ("a.yaml", "- 1"), ("a.yaml", "share"), ("a.json", "3")])
def test_file_without_a_mapping_is_an_error(tmp_path, name, text):
    with pytest.raises(GenSegError, match="must hold a mapping"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", '{"mixing": {"share": 1.0}, "feedback": {"enabled": false}}'),
        ("a.yaml", "mixing: {share: 1.0}\nfeedback:\n  enabled: false\n"),
        ("a.yml", "mixing:\n  share: 1\nfeedback: {enabled: False}\n"),
    ],
)
def test_json_and_yaml_are_read(tmp_path, name, text):
    config = resolved_from(written(tmp_path, text, name))
    assert config.mixing.share == 1.0
    assert config.feedback.enabled is False
    assert config.masks == MaskConfig()


@pytest.mark.parametrize(
    "name, text, key",
    [
        ("a.yaml", "mixing: {share: 0.5}\nseed: 1\nmixing: {share: 0.7}\n", "mixing"),
        ("a.yaml", "mixing: {share: 0.5, share: 0.7}", "share"),
        ("a.json", '{"mixing": {"share": 0.5}, "mixing": {"share": 0.7}}', "mixing"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error(tmp_path, name, text, key):
    with pytest.raises(GenSegError, match=f"{name} is neither valid JSON nor YAML: {key} is there twice; join the two"):
        resolved_from(written(tmp_path, text, name))


@pytest.mark.parametrize("number", ["1e-4", "1E-4", ".1e-3", "+1.e-4", "1.0e-4", "0.0001"])
def test_yaml_takes_numbers_with_exponents(tmp_path, number):
    assert resolved_from(written(tmp_path, f"generator: {{learning_rate: {number}}}", "a.yaml")).generator.learning_rate == 1e-4


def test_yaml_takes_words_that_begin_like_numbers_for_words(tmp_path):
    assert resolved_from(written(tmp_path, "generator: {pretrained: 1e4_cases}", "a.yaml")).generator.pretrained == "1e4_cases"


def test_a_settings_file_that_is_far_too_large_is_refused_at_once(tmp_path):
    path = written(tmp_path, "".join(f"a{i}: {i}\n" for i in range(20_000)), "a.yaml")
    with within(seconds=1), pytest.raises(GenSegError, match=r"a\.yaml has \d+ bytes, more than the 65536"):
        resolved_from(path)


def test_faults_of_a_settings_file_are_listed_up_to_a_number_and_shortened(tmp_path):
    path = written(tmp_path, json.dumps({f"a{i}": "b" * 50 for i in range(900)}))
    with within(seconds=2), pytest.raises(GenSegError) as raised:
        resolved_from(path)
    assert str(raised.value).endswith("and 890 more")
    deep = "[" * 100 + "]" * 100
    with pytest.raises(GenSegError, match=r"seed: .*found \[\[\[") as raised:
        resolved_from(written(tmp_path, f'{{"seed": {deep}}}'))
    assert len(str(raised.value)) < 400


def test_yes_and_no_are_words(tmp_path):
    with pytest.raises(GenSegError, match=r"feedback\.enabled: .*valid boolean; found 'no'"):
        resolved_from(written(tmp_path, "feedback: {enabled: no}", "a.yaml"))


def test_an_empty_yaml_file_changes_nothing(tmp_path):
    assert resolved_from(written(tmp_path, "", "a.yaml")) == GenSegConfig()


def test_process_environment_is_looked_up_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv(SETTINGS, str(written(tmp_path, '{"seed": 5}')))
    assert resolve().seed == 5


def test_file_beats_preset_key_by_key(tmp_path):
    path = written(tmp_path, '{"deformation": {"rotation": 3.0}}')
    config = resolved_from(path, {"deformation": {"rotation": 2.0, "scaling": 0.5}, "seed": 4})
    assert (config.deformation.rotation, config.deformation.scaling, config.seed) == (3.0, 0.5, 4)


def test_preset_is_not_changed_by_the_file(tmp_path):
    preset = {"mixing": {"share": 0.2}}
    resolved_from(written(tmp_path, '{"mixing": {"share": 0.3}}'), preset)
    assert preset == {"mixing": {"share": 0.2}}


def test_error_names_the_file_at_fault(tmp_path):
    with pytest.raises(GenSegError, match=r"genseg\.json"):
        resolved_from(written(tmp_path, '{"mixing": {"share": -1}}'))


def test_settings_survive_a_json_file():
    config = resolve({"mixing": {"share": 0.1}, "redraw": {"mode": "tissue"}, "seed": 9}, {})
    assert checked(GenSegConfig, json.loads(json.dumps(config.to_json())), "test") == config


def test_named_cases_survive_a_json_file():
    config = resolve({"feedback": {"cases": ["a", "b"]}}, {})
    assert checked(GenSegConfig, json.loads(json.dumps(config.to_json())), "test") == config


def test_differences_name_the_settings_that_differ():
    first = resolve({"mixing": {"share": 0.2}}, {})
    second = resolve({"seed": 3}, {})
    assert first.differences(second) == ["mixing.share: 0.2 there, 0.5 now", "seed: 0 there, 3 now"]
    assert first.differences(first) == []


def test_what_the_feedback_takes_may_be_changed_on_the_way():
    cheaper = {"patches": 1, "interval": 50}
    assert resolve({}, {}).differences(resolve({"feedback": cheaper}, {})) == []
    other = {"parameters": "weights", "cases": 0.3, "learning_rate": 0.1}
    assert len(resolve({}, {}).differences(resolve({"feedback": other | cheaper}, {}))) == 3


def test_configuration_is_frozen():
    config = GenSegConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.mixing.share = 0.2
    assert (config.seed, config.mixing.share) == (0, 0.5)


def test_every_setting_is_documented():
    for name, topic in GenSegConfig.model_fields.items():
        fields = getattr(topic.annotation, "model_fields", None)
        for key, field in ({name: topic} if fields is None else fields).items():
            assert field.description, f"{name}.{key}"


def test_the_environment_names_this_package_s_trainers_after_others(monkeypatch):
    own = str(discovery_folder())
    assert (discovery_folder() / "genseg_discovered_trainers.py").is_file()
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert external_trainers() == own
    monkeypatch.setenv("nnUNet_extTrainer", f"/mine:{own}:/other")
    assert external_trainers() == f"/mine:/other:{own}"


def with_set(*lines, preset=None, **environment):
    return resolve(preset, {OVERRIDES: "\n".join(lines), **environment})


def test_single_settings_override_the_file_which_overrides_the_preset(tmp_path):
    path = written(tmp_path, "{deformation: {rotation: 50, scaling: 0.1}}", "a.yaml")
    preset = {"deformation": {"rotation": 40.0, "scaling": 0.2, "displacement": 0.01}}
    found = with_set("deformation.rotation=20", "seed = 3", preset=preset, **{SETTINGS: str(path)})
    assert (found.deformation.rotation, found.deformation.scaling, found.deformation.displacement) == (20, 0.1, 0.01)
    assert found.seed == 3


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("feedback.learning_rate=1e-4", "feedback.learning_rate", 1e-4),
        ("feedback.enabled=false", "feedback.enabled", False),
        ("feedback.cases=[a, b]", "feedback.cases", ["a", "b"]),
        ("generator.pretrained=/a=b/c", "generator.pretrained", "/a=b/c"),
        ("generator.pretrained=", "generator.pretrained", None),
    ],
)
def test_a_single_setting_is_read_as_in_a_yaml_file(line, name, value):
    assert with_set(line).flat()[name] == value


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["deformation.rotation"], "--set needs SECTION.SETTING=VALUE.*found 'deformation.rotation'"),
        (["=3"], "--set needs SECTION.SETTING=VALUE"),
        (["deformation.=3"], "--set needs SECTION.SETTING=VALUE"),
        (["mixing.sources={a"], "--set mixing.sources={a: the value is not valid YAML"),
        (["seed=1", "seed=2"], "--set seed=2: seed is set already"),
        (["mixing.sources={a: 1}", "mixing.sources.a=2"], r"--set mixing.sources.a=2: mixing.sources.a is set already"),
        (["seed=1", "seed.x=2"], "--set seed.x=2: seed is set already"),
        (["deformation.rotaton=2"], r"\(preset and --set\)[\s\S]*deformation.rotaton: unknown key; did you mean rotation"),
        (["deformation.rotation=fast"], "deformation.rotation: Input should be a valid number.*found 'fast'"),
    ],
)
def test_a_wrong_single_setting_gives_one_message(lines, message):
    with pytest.raises(GenSegError, match=message):
        with_set(*lines)
