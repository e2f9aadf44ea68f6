"""`glance card` and `glance push`: the front matter, the numbers and pictures of the card, and the uploaded bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.repocard import metadata_load
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file

from pipeline import backbones, cli, params
from pipeline.artifacts import files, read_json, write_json
from pipeline.bundle import generating, header
from pipeline.bundle.manifest import MANIFEST, Bundle, bundle_digest
from pipeline.hub import card, front_matter, measured, pushing
from pipeline.hub.card import PLACE, Release
from pipeline.hub.front_matter import Licence, Picture, licence_of
from pipeline.registry import connection, registering
from tests import hub_server, published
from tests.conftest import slow
from tests.hub_server import OWNER, READER, TOKEN, faults_of
from tests.pairs import difference, make_pair
from tests.recorded import ROOT

BASE, REPO = "me/base", "me/pair"
OPTIONS = ("--base-model", BASE, "--images", 0)
OTHER = "---\nlicense: other\nlicense_name: flux-1-dev\nlicense_link: LICENSE.md\n---\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def project(pair, tmp_path, monkeypatch):
    """A folder with params.yaml and the bundle where the commands look for it, as the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(pair.bundle.folder, folder / "artifacts/bundle")
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The stand-in of the hub, which this process then takes for the hub; the token may write."""
    with hub_server.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def glance(*arguments, code=0):
    """Runs a command; what it prints and what it complains about."""
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    assert TOKEN not in done.output and READER not in done.output
    return done.stdout, done.stderr.strip()


def refused(*arguments):
    """The one sentence of a command that must fail."""
    printed, said = glance(*arguments, code=1)
    assert printed == "" and said.startswith("Error: ") and "\n" not in said
    return said.removeprefix("Error: ")


def evaluation(folder, digest, **changes):
    """The files of an evaluation of the bundle with this digest."""
    both = {"bundle_digest": digest, "teacher_digest": "sha256:0"}
    arms = {
        "teacher": {"nfe": 100, "retention": 1.0, "retention_low": 1.0, "retention_high": 1.0, "psnr": None},
        "student": {"nfe": 8, "retention": 0.97, "retention_low": 0.9512, "retention_high": 0.99, "psnr": 31.84},
        "somebody": {"nfe": 4, "retention": None, "psnr": 20.0},
    }
    times = {"teacher": {"speedup_batch1": 1.0}, "student": {"speedup_batch1": 9.54}, "somebody": {}}
    write_json(folder / "metrics.json", {"arms": arms, "prompts": 504, **both} | changes)
    write_json(folder / "latency.json", {"arms": times, "device": "2 CPU threads, float32", **both})
    return folder


def test_card_writes_the_folder_of_a_repository(pair, project):
    digest = bundle_digest("artifacts/bundle")
    evaluation(Path("measured"), digest)
    printed, _ = glance("card", "out", "--base-model", BASE, "--evaluation", "measured", "--images", 2, "--seed", 3)
    names = files("out")
    assert printed.splitlines() == [f"out/{name}" for name in names]
    own = files("artifacts/bundle")
    assert [name for name in names if not name.startswith("images/")] == own
    contract = replace(Bundle.load("out"), folder=pair.bundle.folder)
    retention = contract.retention
    assert (retention.value, retention.low, retention.prompts, retention.student_forwards) == (0.97, 0.9512, 504, 8)
    assert replace(contract, retention=None) == pair.bundle
    for phase in contract.phases:
        file, before = Path("out", phase.file), Path("artifacts/bundle", phase.file)
        with safe_open(file, framework="pt") as opened, safe_open(before, framework="pt") as unmeasured:
            texts = opened.metadata()
            assert header.read(texts, file)[0].retention == retention
            assert texts | {header.KEY: ""} == unmeasured.metadata() | {header.KEY: ""}
        tensors, kept = load_file(file), load_file(before)
        assert tensors.keys() == kept.keys() and all(torch.equal(tensors[key], kept[key]) for key in kept)

    said = metadata_load("out/README.md")
    pictures = said.pop("widget")
    assert said == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "license": "unknown",
        "pipeline_tag": "text-to-image",
        "tags": ["diffusers", "text-to-image", "lora", "flow-matching", "distillation", "few-step"],
    }
    text = Path("out/README.md").read_text()
    assert not faults_of(text) and ModelCard(text).data.base_model == BASE
    assert [one["output"]["url"] for one in pictures] == [name for name in names if name.startswith("images/")]
    backbone = pair.recorded.backbone(backbones.PARTS)
    for number, one in enumerate(pictures):
        (ours,) = generating.generate(backbone, pair.bundle, [one["text"]], [3 + number])
        with Image.open(Path("out", one["output"]["url"])) as image:
            assert difference(ours, np.asarray(image)) <= 1
            assert json.loads(image.text["glance"])["prompt"] == one["text"]

    assert text.count("<Gallery />") == 1
    assert "| **Student** | **8** | **97.0 % [95.1, 99.0]** | **31.8** | **9.5×** |" in text
    assert f"the bundle with the digest `{digest}`, with the measured retention in the contract. The folder" in text
    assert str(pair.recorded.teacher) not in text and f'from_pretrained("{BASE}"' in text
    assert text.index("# 2 LoRA adapters") < text.index("<Gallery />") < text.index("```python") < text.index("## Mea")


def test_a_card_without_pictures_and_numbers_loads_no_base(project, monkeypatch):
    monkeypatch.setattr(backbones, "load", None)
    glance("card", "out", "--base-model", BASE, "--images", 0)
    text = Path("out/README.md").read_text()
    assert "Gallery" not in text and "Measured" not in text and "widget" not in metadata_load("out/README.md")
    assert PLACE in text


def test_the_pictures_are_of_held_out_prompts_or_of_a_file(project):
    Path("mine.txt").write_text("a red star\nthree hearts\na blue ring\n")
    glance("card", "out", "--base-model", BASE, "--images", 2, "--prompts-file", "mine.txt")
    assert [one["text"] for one in metadata_load("out/README.md")["widget"]] == ["a red star", "three hearts"]


def test_the_base_is_the_one_of_params_yaml(pair, project):
    content = Path("params.yaml").read_text()
    content = content.replace("path: artifacts/teacher ", f"path: {pair.recorded.teacher} ")
    Path("params.yaml").write_text(content.replace("hub: null", "hub: owner/name@0123456789abcdef"))
    glance("card", "out", "--images", 0)
    assert metadata_load("out/README.md")["base_model"] == "owner/name"


def test_a_card_needs_the_bases_repository(project):
    for given in ("artifacts/teacher/x", "name", "a/b c"):
        said = refused("card", "out", "--images", 0, "--base-model", given)
        assert said == f"--base-model must name a repository of the hub, owner/name, got {given}"
    said = refused("card", "out", "--images", 0)
    assert said.startswith("--base-model must name the repository of ")
    assert said.endswith(" on the hub, owner/name: teacher.hub of params.yaml does not say it")
    assert not Path("out").exists()


def test_a_place_that_is_taken_is_refused(project):
    Path("out").mkdir()
    assert refused("card", "out", "--base-model", BASE) == "OUT must not be there yet, got out"


def test_a_place_inside_a_bundle_or_a_base_is_refused(pair, project):
    before = bundle_digest("artifacts/bundle")
    for kind, place in (("bundle", Path("artifacts/bundle")), ("base model", Path(pair.recorded.teacher))):
        said = refused("card", place / "out", "--base-model", BASE, "--images", 0)
        assert said == f"OUT must lie outside of the {kind} {place.resolve()}, got {place / 'out'}"
    assert bundle_digest("artifacts/bundle") == before


def test_a_failed_card_leaves_nothing(project, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "text", full)
    assert refused("card", "out", "--base-model", BASE, "--images", 0).startswith("no space left to write")
    assert not list(Path().glob("*out*"))


def test_a_licence_without_identifier_has_the_name_and_the_link_of_the_base(tmp_path):
    assert licence_of(tmp_path, BASE, "apache-2.0", None, None) == Licence("apache-2.0")
    for key, given in (("name", [None, "x"]), ("link", ["x", None])):
        with pytest.raises(ValueError, match=f"--license-{key} must give the {key} of the base's licence, since"):
            licence_of(tmp_path, BASE, "other", *given)
    (tmp_path / "README.md").write_text(OTHER)
    link = "https://huggingface.co/me/base/blob/main/LICENSE.md"
    assert licence_of(tmp_path, BASE, "other", None, None) == Licence("other", "flux-1-dev", link)
    assert licence_of(tmp_path, BASE, "other", "x", "https://y") == Licence("other", "x", "https://y")


def test_the_front_matter_says_a_licence_without_identifier(pair):
    release = Release(base_model=BASE, licence=Licence("other", "flux-1-dev", "https://x"), digest="sha256:0")
    text = card.text("# A\n\nb\n", pair.bundle, release, [])
    said = ModelCard(text).data
    assert (said.license, said.license_name, said.license_link) == ("other", "flux-1-dev", "https://x")
    assert not faults_of(text)


@pytest.mark.parametrize("prompt", ['a "star": # [red]', "- {a}\u2028b", "ein großer Stern ☆", "null", "---", "8"])
def test_any_prompt_reads_back(pair, prompt):
    release = Release(base_model=BASE, licence=Licence("mit"), digest="sha256:0")
    text = card.text("# A\n", pair.bundle, release, [Picture("images/a.png", prompt)])
    assert ModelCard(text).data.widget == [{"text": prompt, "output": {"url": "images/a.png"}}]
    assert not faults_of(text)


def test_front_matter_that_does_not_read_back_is_refused(pair, monkeypatch):
    release = Release(base_model=BASE, licence=Licence("mit"), digest="sha256:0")
    broken = front_matter.data(BASE, Licence("mit"), [])
    monkeypatch.setattr(broken, "to_yaml", lambda: "base_model: a")
    monkeypatch.setattr(card, "data", lambda *arguments: broken)
    with pytest.raises(ValueError, match="the card's front matter does not read back as it was meant"):
        card.text("# A\n", pair.bundle, release, [])


def test_the_own_front_matter_of_the_bundle_is_replaced(pair):
    release = Release(base_model=BASE, licence=Licence("mit"), digest="sha256:0", version="models:/a/3")
    own = (pair.bundle.folder / "README.md").read_text()
    text = card.text(own, pair.bundle, release, [])
    assert text.count("license:") == 1 and text.count("\n---\n") == 1
    assert own.count(PLACE) == 1, "else a pushed card would not name its repository"
    assert "registered as `models:/a/3`" in text
    assert f'folder = "{REPO}"' in card.text(own, pair.bundle, replace(release, repository=REPO), [])


def test_the_table_shows_every_arm(tmp_path):
    lines = measured.table(evaluation(tmp_path, "sha256:1"), "sha256:1").splitlines()
    assert lines[:5] == [
        "| arm | forwards | retention | PSNR, dB | speed-up, batch 1 |",
        "| --- | --- | --- | --- | --- |",
        "| Teacher | 100 | 100.0 % [100.0, 100.0] | – | 1.0× |",
        "| **Student** | **8** | **97.0 % [95.1, 99.0]** | **31.8** | **9.5×** |",
        "| somebody | 4 | – | 20.0 | – |",
    ]
    assert lines[6].startswith("Measured on 504 held-out prompts.") and lines[6].endswith("of 2 CPU threads, float32.")


def test_an_evaluation_of_something_else_is_refused(tmp_path):
    evaluation(tmp_path, "sha256:1")
    with pytest.raises(ValueError, match="metrics.json must measure the bundle sha256:2, got sha256:1"):
        measured.table(tmp_path, "sha256:2")
    evaluation(tmp_path, "sha256:1", arms={})
    write_json(tmp_path / "latency.json", read_json(tmp_path / "latency.json") | {"arms": {}})
    with pytest.raises(ValueError, match="metrics.json must hold the arm student: evaluate the bundle anew"):
        measured.table(tmp_path, "sha256:1")


def test_push_uploads_the_folder_in_one_commit(project, hub):
    digest = bundle_digest("artifacts/bundle")
    printed, _ = glance("push", REPO, "--base-model", BASE, "--images", 2)
    assert len([one for one in hub.requests if "/commit/" in one]) == 1
    head = hub.head(REPO)
    assert printed == f"{hub.url}/{REPO}/commit/{head.sha}\n"
    assert head.title == f"Publish the bundle {digest[:15]}"
    assert head.description == f"version: not registered\ndigest: {digest}"
    glance("card", "out", "--base-model", BASE, "--images", 2)
    written = {name: Path("out", name).read_bytes() for name in files("out")}
    text = written["README.md"].decode().replace(PLACE, f'folder = "{REPO}"')
    assert head.files == written | {"README.md": text.encode()}
    assert any(len(data) > hub_server.PART for data in hub.lfs.values()), "else no file came in parts"
    assert not hub.repositories["model", REPO].private


def test_a_second_push_replaces_the_first_and_keeps_what_others_added(project, hub):
    glance("push", REPO, "--base-model", BASE, "--images", 1, "--private")
    assert hub.repositories["model", REPO].private
    hub.head(REPO).files.update({"LICENSE": b"a", "third.safetensors": b"b", "comfyui/slow.safetensors": b"c"})
    Path("mine.txt").write_text("a red star\n")
    glance("push", REPO, "--base-model", BASE, "--images", 1, "--prompts-file", "mine.txt")
    commits = hub.repositories["model", REPO].branches["main"]
    assert len(commits) == 3
    first, second = commits[1].files, commits[2].files
    (old,) = [name for name in first if name.startswith("images/")]
    (new,) = [name for name in second if name.startswith("images/")]
    assert old != new and "third.safetensors" not in second
    assert {"LICENSE", "comfyui/slow.safetensors", "slow.safetensors"} <= second.keys()


def test_push_makes_the_branch_that_is_named(project, hub):
    for _ in range(2):
        glance("push", REPO, "--base-model", BASE, "--images", 0, "--revision", "v2")
    assert not hub.head(REPO).files and "slow.safetensors" in hub.head(REPO, "v2").files


@pytest.fixture
def registry(tmp_path, monkeypatch, database):
    """A project whose bundle is registered, as the working directory."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW", "DVC"))]:
        monkeypatch.delenv(name)
    for name in connection.ENVIRONMENT:  # so that what connect sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    root = published.write_project(tmp_path / "registered")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    (root / ".glance").mkdir()
    shutil.copy(database, root / ".glance/mlflow.db")
    registering.register(params.load())
    return root


def test_a_registered_version_is_named_by_its_number(registry, hub):
    digest = bundle_digest("artifacts/bundle")
    evaluated = read_json("artifacts/evaluation/metrics.json") | {"prompts": 504}
    for arm in evaluated["arms"].values():
        arm |= {"retention_low": 0.9, "retention_high": 1.0}
    write_json("artifacts/evaluation/metrics.json", evaluated)
    for reference in ("models:/glance-scenes@candidate", "models:/glance-scenes/1"):
        glance("push", REPO, *OPTIONS, "--bundle", reference, "--evaluation", "artifacts/evaluation")
        head = hub.head(REPO)
        assert head.title == "Publish models:/glance-scenes/1"
        assert head.description == f"version: models:/glance-scenes/1\ndigest: {digest}"
        text = head.files["README.md"].decode()
        assert "registered as `models:/glance-scenes/1`" in text
        assert "| **Student** | **8** | **97.0 % [90.0, 100.0]** | **24.5** | **9.5×** |" in text
        assert load(head.files["slow.safetensors"]).keys() == load_file("artifacts/bundle/slow.safetensors").keys()


def test_push_without_a_token_is_refused(project, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", "nowhere")
    said = refused("push", REPO, *OPTIONS)
    assert said == "push needs a token that may write to the hub: set HF_TOKEN, or run `hf auth login`"
    assert not hub.requests


@pytest.mark.parametrize("name", ["pair", "a/b/c", "a b/c", "https://huggingface.co/me/pair"])
def test_a_name_that_is_no_repository_is_refused(project, hub, name):
    assert refused("push", name, *OPTIONS) == f"REPO_ID must name a repository of the hub, owner/name, got {name}"
    assert not hub.requests


def test_a_token_that_the_hub_does_not_know_is_refused(project, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    said = refused("push", REPO, *OPTIONS)
    assert said == "the hub does not know the token: set HF_TOKEN anew, or run `hf auth login`"


def test_a_token_that_may_not_write_is_refused(project, hub, monkeypatch):
    fix = "take a token that may write there, or correct the name"
    assert refused("push", "you/pair", *OPTIONS) == f"the token may not write to you/pair of the hub: {fix}"
    hub.repositories["model", REPO] = hub_server.Repository()
    monkeypatch.setenv("HF_TOKEN", READER)
    assert refused("push", REPO, *OPTIONS) == f"the token may not write to {REPO} of the hub: {fix}"
    assert not hub.head(REPO).files


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_type_is_refused(project, hub, kind):
    hub.repositories[kind, REPO] = hub_server.Repository()
    said = refused("push", REPO, *OPTIONS)
    assert said == f"REPO_ID must be a model of the hub, and {REPO} is a {kind}: name another"
    assert ("model", REPO) not in hub.repositories


def test_a_hub_that_does_not_answer_is_one_sentence(project, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused("push", REPO, *OPTIONS)
    assert said.startswith("the hub does not answer at http://127.0.0.1:9: go online (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused("push", REPO, *OPTIONS) == "push needs the hub, and HF_HUB_OFFLINE is set: unset it"


def test_an_error_of_the_hub_is_one_sentence(project, hub):
    hub.broken = True
    said = refused("push", REPO, *OPTIONS)
    assert said.startswith(f"the hub refuses {REPO}: ") and "500" in said


def test_an_upload_that_breaks_off_is_one_sentence_and_makes_no_commit(project, hub):
    hub.full = True
    printed, said = glance("push", REPO, *OPTIONS, code=1)  # below the bars of the upload
    last = said.splitlines()[-1]
    assert printed == "" and last.startswith(f"Error: the upload to {REPO} broke off: ") and "403" in last
    assert hub.head(REPO).title == "initial commit"


def test_a_branch_that_the_hub_does_not_have_is_one_sentence(hub, tmp_path):
    hub.repositories["model", REPO] = hub_server.Repository(branches={})
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{REPO} has no such revision: "):
        pushing.push(HfApi(hub.url, token=TOKEN), REPO, tmp_path, "a")


def test_front_matter_that_the_hub_refuses_is_one_sentence(project, hub):
    content = read_json(Path("artifacts/bundle", MANIFEST))
    write_json(Path("artifacts/bundle", MANIFEST), content | {"license": "my-own"})
    said = refused("push", REPO, *OPTIONS)
    assert said == 'Invalid metadata in README.md. - "license" must be one of the list'
    assert hub.head(REPO).title == "initial commit"


CODE = """
import sys
from pathlib import Path
import numpy as np
card = Path(sys.argv[1]).read_text()
code = card.partition("```python\\n")[2].partition("```")[0]
scope = {}
exec(code, scope)
np.save(sys.argv[2], np.asarray(scope["image"]))
"""


@pytest.fixture
@slow
def pushed(pair, project):
    """The stand-in with the base as a repository, and with the pair that the command pushed in a process of its own."""
    with hub_server.running() as hub:
        base = {name: Path(pair.recorded.teacher, name).read_bytes() for name in files(pair.recorded.teacher)}
        commits = [hub_server.Commit("a base", "", base)]
        hub.repositories["model", BASE] = hub_server.Repository(branches={"main": commits})
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(project / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-m", "pipeline.cli", "push", REPO, "--base-model", BASE, "--images", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{hub.url}/{OWNER}/") and TOKEN not in done.stdout + done.stderr
        yield hub, environment


def test_the_lines_of_a_pushed_card_make_the_image_of_generate_from_the_hub(pair, project, pushed):
    hub, environment = pushed
    Path("card.md").write_bytes(hub.head(REPO).files["README.md"])
    done = subprocess.run(
        [sys.executable, "-c", CODE, "card.md", "image.npy"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"GET /{REPO}/resolve/main/slow.safetensors" in " ".join(hub.requests)
    images = generating.generate(pair.recorded.backbone(backbones.PARTS), pair.bundle, ["a red star"], [0])
    assert difference(images[0], np.load("image.npy")) <= 1
    assert not re.search(r"artifacts/teacher|/tmp", Path("card.md").read_text())
