"""Tests of reading an export: rescaled maps at any places, unfinished exports, errors, the documented decoding."""

import json

import numpy as np
import pytest
import stored_export
from stored_export import METHODS, N

from sdecor.export import reader, resume, verify

LOST = {"float32": 0, "float16": 2**-11, "uint8": 0.5 / 127}  # largest error, relative to a map's largest value


@pytest.fixture(scope="module")
def maps():
    return stored_export.draw()


@pytest.fixture(scope="module", params=["float32", "float16", "uint8"])
def exported(request, maps, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / f"{request.param}.zarr"
    columns = stored_export.write(path, maps, dtype=request.param, skipped=(5,))
    return request.param, path, columns


def test_maps_are_rescaled_whatever_they_are_stored_in(exported, maps):
    dtype, path, columns = exported
    export = reader.open(path)
    assert export.complete and len(export) == N and export.ranges == ((0, N),) and list(export.methods) == list(maps)
    for method, values in maps.items():
        found = export.attribution(method)
        assert found.dtype == np.float32 and np.isnan(found[5]).all()
        whole = np.arange(N) != 5
        largest = np.abs(values).max((1, 2), keepdims=True)
        assert (np.abs(found - values)[whole] <= (LOST[dtype] * 1.0001 * largest)[whole]).all()
        np.testing.assert_array_equal(found[2], 0)
        np.testing.assert_array_equal(export.attribution(METHODS[method]), found)
    for name in ("prediction", "target", "label", "logits"):
        whole = np.arange(N) != 5
        np.testing.assert_array_equal(getattr(export, name)[whole], columns[name][whole])
    assert export.label[5] == -1 and np.isnan(export.logits[5]).all()
    assert export.skipped == [{"index": 5, "name": "image 5", "error": "cut off"}]
    assert export.names[5] == "image 5" and len(export.names) == N


@pytest.mark.parametrize("index", [0, -1, slice(3, 7), slice(None, None, 3), [7, 0, 3], np.array([1, 1]), slice(4, 4)])
def test_any_places_can_be_read(exported, index):
    _, path, _ = exported
    export = reader.open(path)
    np.testing.assert_array_equal(export.attribution("gradient", index), export.attribution("gradient")[index])
    np.testing.assert_array_equal(export.read("logits", index), export.logits[index])


def test_others_decode_by_the_documented_formula(exported):
    """Decode by `(stored − zero_point) · scale`, with the store's attributes alone."""
    zarr = pytest.importorskip("zarr")
    xarray = pytest.importorskip("xarray")
    _, path, _ = exported
    group, data, export = zarr.open_group(path, mode="r"), xarray.open_zarr(path), reader.open(path)
    assert dict(data.sizes) == {"example": N, "y": 6, "x": 7, "class": 4}
    for method, name in group.attrs["methods"].items():
        encoding = group[name].attrs["encoding"]
        scale = 1 if encoding["scale"] is None else group[encoding["scale"]][:][:, None, None]
        values = (group[name][:].astype(np.float32) - np.float32(encoding["zero_point"])) * scale
        np.testing.assert_array_equal(values, export.attribution(method))
        assert data[name].dims == ("example", "y", "x")
        np.testing.assert_array_equal(data[name].values, group[name][:])


def test_an_export_that_is_not_finished_says_what_is_there(maps, tmp_path):
    stored_export.write(tmp_path / "a.zarr", maps, ranges=(0, 2))
    export = reader.open(tmp_path / "a.zarr")
    assert not export.complete and export.ranges == ((0, 4), (8, 11)) and "7 there" in repr(export)
    np.testing.assert_array_equal(export.attribution("gradient", [1, 9]), maps["gradient"][[1, 9]])
    assert sorted(export.names) == [0, 1, 2, 3, 8, 9, 10] and export.names[9] == "image 9" and not export.skipped
    with pytest.raises(ValueError, match="example 5 is not there yet, of 11 there are 0…3, 8…10"):
        export.attribution("gradient", [1, 5])
    with pytest.raises(ValueError, match="not finished"):
        export.maps()
    assert export.check() == []


def test_a_url_is_read_as_a_folder_is(maps, tmp_path):
    stored_export.write(tmp_path / "a.zarr", maps, dtype="float16")
    local, remote = reader.open(tmp_path / "a.zarr"), reader.open(f"file://{tmp_path}/a.zarr")
    np.testing.assert_array_equal(remote.attribution("gradient", [1, 7]), local.attribution("gradient", [1, 7]))
    assert remote.names == local.names and remote.digest == local.digest and remote.check() == []


def test_what_is_not_there_is_refused_by_name(maps, tmp_path):
    stored_export.write(tmp_path / "a.zarr", maps)
    export = reader.open(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="method = 'gradent' is not known; did you mean 'gradient'"):
        export.attribution("gradent")
    with pytest.raises(ValueError, match="array = 'logit'"):
        export.read("logit")
    with pytest.raises(ValueError, match="'gradient' has no completeness error"):
        export.completeness_error("gradient")
    np.testing.assert_array_equal(export.completeness_error("integrated_gradients:steps=4"), np.arange(N))
    with pytest.raises(ValueError, match=f"examples 0…{N - 1}"):
        export.places([3, N])
    np.testing.assert_array_equal(export.places([3, 1, 3]), [1, 3])
    with pytest.raises(ValueError, match="holds no export"):
        reader.open(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(ValueError, match="no export"):
        reader.open(tmp_path / "other")


def test_damage_is_found(maps, tmp_path):
    stored_export.write(tmp_path / "a.zarr", maps)
    stored_export.write(tmp_path / "b.zarr", maps)
    assert reader.open(tmp_path / "a.zarr").check() == []
    assert reader.open(tmp_path / "a.zarr").digest == reader.open(tmp_path / "b.zarr").digest
    chunk = next(path for path in sorted((tmp_path / "a.zarr" / "gradient").iterdir()) if path.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    (problem,) = reader.open(tmp_path / "a.zarr").check()
    assert str(chunk) in problem
    with pytest.raises(ValueError, match=chunk.name):  # TensorStore's error names the file
        reader.open(tmp_path / "a.zarr").attribution("gradient", slice(0, 4))


def change(path, edit) -> None:
    """Rewrite an export's zarr.json as a foreign program might, without our copy."""
    (path / ".sdecor" / "group.json").unlink(missing_ok=True)
    group = json.loads((path / "zarr.json").read_text())
    edit(group)
    (path / "zarr.json").write_text(json.dumps(group))


def rename(new):
    def edit(group):
        arrays = group["consolidated_metadata"]["metadata"]
        arrays[new] = arrays.pop("gradient")

    return edit


def of_gradient(**changes):
    return lambda group: group["consolidated_metadata"]["metadata"]["gradient"]["attributes"].update(changes)


def of_export(**changes):
    return lambda group: group["attributes"].update(changes)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "", "a\\b", "a\n", "C:x", ".sdecor"])
def test_a_name_that_would_lead_out_of_a_folder_is_refused_when_read(maps, tmp_path, name):
    path = tmp_path / "a.zarr"
    stored_export.write(path, {"gradient": maps["gradient"]})
    change(path, rename(name))
    for read in (reader.open, verify.problems, resume.recorded):
        with pytest.raises(ValueError, match=r"a\.zarr/zarr\.json .*name = ") as error:
            read(path)
        assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    "edit, message",
    [
        (of_gradient(method="a\nb"), "method = 'a\\\\nb'"),
        (of_gradient(method=["gradient"]), r"method = \['gradient'\]"),
        (of_gradient(encoding=None), "lacks the encoding"),
        (of_gradient(encoding={"dtype": "float32", "scale": "../x", "zero_point": 0}), "encoding.scale .* '../x'"),
        (of_gradient(encoding={"dtype": "uint8", "scale": "label", "zero_point": 0}), "not of its type"),
        (of_gradient(completeness_error="../x"), "completeness_error .* '../x'"),
        (lambda group: group["consolidated_metadata"]["metadata"]["label"].update(attributes=None), "array 'label'"),
        (lambda group: group["attributes"].pop("num_examples"), "num_examples = ''"),
        (of_export(num_examples="many"), "num_examples = 'many'"),
        (of_export(image_shape=[6]), "image_shape"),
        (of_export(num_classes=None), "num_classes = None"),
        (of_export(provenance=[1]), "provenance"),
    ],
)
def test_foreign_attributes_are_refused_when_read(maps, tmp_path, edit, message):
    path = tmp_path / "a.zarr"
    stored_export.write(path, {"gradient": maps["gradient"]})
    change(path, edit)
    with pytest.raises(ValueError, match=rf"a\.zarr/zarr\.json .*{message}"):
        reader.open(path)


def test_an_array_that_is_another_than_the_group_says_is_refused(maps, tmp_path):
    path = tmp_path / "a.zarr"
    stored_export.write(path, {"gradient": maps["gradient"]})
    own = json.loads((path / "label" / "zarr.json").read_text())
    (path / "label" / "zarr.json").write_text(json.dumps(own | {"data_type": "uint32", "fill_value": 0}))
    with pytest.raises(ValueError, match="array 'label' .* is uint32 .*run the export's command again"):
        assert reader.open(path).label is None


@pytest.mark.parametrize("content", ["", '{"example_id": 0', "[]\n", None])
def test_a_list_that_is_damaged_is_named(maps, tmp_path, content):
    path = tmp_path / "a.zarr"
    stored_export.write(path, {"gradient": maps["gradient"]}, skipped=(1,))
    for name, read in (("ids.jsonl", lambda export: export.names), ("skipped.jsonl", lambda export: export.skipped)):
        (path / name).unlink() if content is None else (path / name).write_text(content)
        if name == "skipped.jsonl" and not content:  # an export without skipped examples has no such list
            continue
        with pytest.raises(ValueError, match=rf"{name} is (damaged|missing): run the export's command again"):
            read(reader.open(path))


def test_a_commit_record_that_is_damaged_says_what_to_do(maps, tmp_path):
    path = tmp_path / "a.zarr"
    stored_export.write(path, {"gradient": maps["gradient"]}, ranges=(0, 1))
    record = next((path / ".sdecor" / "ranges").glob("*4.json"))
    record.write_text("")
    with pytest.raises(ValueError, match=rf"{record.name} is damaged: run the export's command again"):
        reader.open(path)
