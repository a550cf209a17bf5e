"""Doctor on this machine for real, and on machines that tests describe."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.commands.doctor import doctor
from export.doctor.child import ProbeError, ask_child
from export.doctor.elf import needed_libraries
from export.doctor.facts import Fact, gather
from export.doctor.findings import findings_for
from export.doctor.known_bad import TABLE
from export.doctor.lines import fact_line
from export.doctor.machine import Machine
from export.doctor.verdicts import BACKEND_ROWS, BackendRow, asked_row, judge
from runtime.errors import MissingDependencyError, UsageError

ORIN = {"name": "Orin", "target": "sm_87", "memory_bytes": 64 * 2**30, "integrated": True}
RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "target": "sm_89", "memory_bytes": 2**34, "integrated": False}
RTX_TARGETS = ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]
ABSENT = {"usable": False, "reason": "no module of it; install it", "version": None, "targets": []}
TEGRA = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
)
DPKG = (
    "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
    "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n"
    "Description: inference\n words: that are no field\n\n"
    "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1\n\n"
    "Package: vim\nStatus: install ok installed\nVersion: 2:8.2\n"
)


def driver(*devices: dict[str, Any], cuda: str = "12.6") -> dict[str, Any]:
    reason = None if devices else "the driver lists no device"
    return {"driver": True, "cuda": cuda, "release": None, "devices": list(devices), "reason": reason}


def trt(version: str, *targets: str, refusal: str | None = None) -> dict[str, Any]:
    return {
        "usable": True,
        "reason": None,
        "module": "tensorrt",
        "version": version,
        "targets": list(targets),
        "refusal": refusal,
    }


def onnxruntime(version: str = "1.31.1", *, cuda: str | None = "it was built without it") -> dict[str, Any]:
    providers = ["CPUExecutionProvider"] + ["CUDAExecutionProvider"] * (cuda != "it was built without it")
    return {
        "usable": True,
        "reason": None,
        "version": version,
        "providers": providers,
        "tensorrt_provider_needs": [],
        "opens": {"cpu": None, "cuda": cuda},
        "refusal": {"cpu": None, "cuda": None},
    }


class Described(Machine):
    """A machine of which a test says what it has."""

    def __init__(self, root: Path, distributions: dict[str, str] | None = None, **answers: Any) -> None:
        super().__init__(root)
        self.distributions = distributions or {}  # type: ignore[misc]
        self.given = {
            "cuda": {"driver": False, "reason": "no libcuda.so.1", "devices": []},
            "cuda-runtime": {"version": None, "reason": "no libcudart"},
            "tensorrt": ABSENT,
            "tensorrt-rtx": ABSENT,
            "onnxruntime": onnxruntime(),
        } | {name.replace("_", "-"): answer for name, answer in answers.items()}

    def ask(self, question: str) -> dict[str, Any]:
        answer = self.given[question]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


def with_file(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def jetson(tmp_path: Path) -> Described:
    """An Orin with JetPack 6.2, in a virtual environment that does not see JetPack's TensorRT."""
    with_file(tmp_path, "etc/nv_tegra_release", TEGRA)
    with_file(tmp_path, "var/lib/dpkg/status", DPKG)
    with_file(tmp_path, "proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    with_file(tmp_path, "proc/meminfo", "MemTotal: 64000 kB\nMemAvailable: 32000 kB\n")
    machine = Described(tmp_path, cuda=driver(ORIN))
    machine.python = lambda: {  # type: ignore[method-assign]
        "version": "3.10.12",
        "implementation": "CPython",
        "virtual_environment": True,
        "system_site_packages": False,
    }
    return machine


def row(machine: Machine, backend: str) -> BackendRow:
    return next(row for row in judge(gather(machine)) if row.backend == backend)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(doctor, list(arguments))


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def test_doctor__of_this_machine_reads_every_fact_and_says_what_is_true_here() -> None:
    import onnxruntime as installed
    import torch

    done = command("--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout, parse_constant=refuse_constant)
    assert {name: fact["error"] for name, fact in report["facts"].items() if fact["error"]} == {}
    facts = {name: fact["value"] for name, fact in report["facts"].items()}
    assert facts["python"]["version"] == sys.version.split()[0]
    assert facts["onnxruntime"]["version"] == installed.__version__
    assert facts["onnxruntime"]["providers"] == installed.get_available_providers()
    assert facts["torch"]["cuda"] == torch.version.cuda
    assert facts["kernels"]["ours"] is True
    assert facts["tensorrt-rtx"]["version"].count(".") == 3
    assert "sm_89" in facts["tensorrt-rtx"]["targets"]
    assert [entry["backend"] for entry in report["backends"]] == list(BACKEND_ROWS)
    rows = {entry["backend"]: entry for entry in report["backends"]}
    assert rows["onnxruntime:cpu"]["run"]["able"]
    assert rows["tensorrt-rtx"]["build"]["able"]
    has_device = bool(facts["driver"]["devices"])
    assert has_device == torch.cuda.is_available()
    if not has_device:
        assert not any(rows[name]["run"]["able"] for name in BACKEND_ROWS[1:])
        assert "no CUDA device" in rows["tensorrt-rtx"]["run"]["reason"]


def test_doctor__answers_for_one_backend_and_part_by_its_exit_code() -> None:
    assert command("--for", "onnxruntime").exit_code == 0
    built = command("--for", "tensorrt-rtx:build", "--json")
    assert built.exit_code == 0
    assert json.loads(built.stdout)["backend"] == "tensorrt-rtx"
    unknown = command("--for", "openvino")
    assert isinstance(unknown.exception, UsageError)


def test_doctor__exits_3_for_what_cannot_be_done_here(
    monkeypatch: pytest.MonkeyPatch, jetson: Described
) -> None:
    monkeypatch.setattr("export.doctor.machine.Machine", lambda: jetson)
    for asked, part in (("tensorrt", "build"), ("tensorrt:run", "run"), ("onnxruntime:cuda:run", "run")):
        done = command("--for", asked)
        assert isinstance(done.exception, MissingDependencyError)
        assert done.exception.exit_code == 3
        assert f"cannot {part} here: " in str(done.exception)
        assert "\n" not in str(done.exception)
    assert command("--for", "onnxruntime:cpu:run").exit_code == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorrt", ("tensorrt", ("build", "run"))),
        ("tensorrt-rtx:run", ("tensorrt-rtx", ("run",))),
        ("onnxruntime:cuda", ("onnxruntime:cuda", ("build", "run"))),
        ("onnxruntime:cuda:build", ("onnxruntime:cuda", ("build",))),
        ("onnxruntime:run", ("onnxruntime:cpu", ("run",))),
    ],
)
def test_asked_row__reads_backend_and_part(text: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert asked_row(text) == expected


@pytest.mark.parametrize("text", ["", "openvino", "tensorrt:train", "onnxruntime:npu:run", ":run"])
def test_asked_row__refuses_what_is_no_backend(text: str) -> None:
    with pytest.raises(UsageError, match=r"--for: found .* expected one of onnxruntime:cpu"):
        asked_row(text)


def test_facts__of_a_jetson_come_from_its_release_file_and_dpkg(jetson: Described) -> None:
    fact = gather(jetson)["jetpack"]
    assert fact.value["l4t"] == "36.4.3"
    assert fact.value["jetpack"] == "6.2+b77"
    assert fact.value["model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert fact.value["packages"] == {"nvidia-jetpack": "6.2+b77", "libnvinfer10": "10.3.0.30-1+cuda12.5"}
    assert "L4T 36.4.3, JetPack 6.2+b77, NVIDIA Jetson AGX Orin" in fact_line(fact)


def test_verdicts__of_a_jetson_name_the_environment_that_hides_tensorrt(jetson: Described) -> None:
    verdict = row(jetson, "tensorrt").build
    assert not verdict.able
    assert "make it anew with --system-site-packages" in verdict.reason
    found = [finding.line() for finding in findings_for(gather(jetson))]
    assert any(line.startswith("tensorrt 10.3.0.30:") and "/4723" in line for line in found)
    assert any("JetPack 6.2" in line for line in found)


def test_verdicts__of_a_jetson_that_sees_tensorrt_build_and_run_it(jetson: Described) -> None:
    jetson.given |= {"tensorrt": trt("10.3.0.30"), "tensorrt-rtx": trt("1.7.1.116", *RTX_TARGETS)}
    assert row(jetson, "tensorrt").build.able
    assert row(jetson, "tensorrt").run.able
    assert row(jetson, "tensorrt").run.reason == "tensorrt 10.3.0.30 on Orin"
    verdict = row(jetson, "tensorrt-rtx").run
    assert not verdict.able
    assert "Orin is sm_87, tensorrt-rtx 1.7.1.116 serves sm_80" in verdict.reason


def test_verdicts__pass_on_what_the_runtime_itself_refuses(tmp_path: Path) -> None:
    refusing = trt("1.7.1.116", *RTX_TARGETS, refusal="running it is not in this version")
    machine = Described(tmp_path, cuda=driver(RTX_4090, cuda="13.2"), tensorrt_rtx=refusing)
    assert row(machine, "tensorrt-rtx").build.able
    assert row(machine, "tensorrt-rtx").run.reason == (
        "dgsnet's runtime refuses: running it is not in this version"
    )


def test_verdicts__need_a_driver_for_the_cuda_that_the_package_was_built_for(tmp_path: Path) -> None:
    packages = {"tensorrt-rtx-cu13-bindings": "1.7.1.116"}
    for cuda, able in (("12.6", False), ("13.0", True)):
        machine = Described(
            tmp_path, packages, cuda=driver(RTX_4090, cuda=cuda), tensorrt_rtx=trt("1.7.1.116", *RTX_TARGETS)
        )
        verdict = row(machine, "tensorrt-rtx").run
        assert verdict.able is able
        assert ("is for CUDA 13, the driver serves CUDA 12.6" in verdict.reason) is not able


def test_verdicts__of_a_server_without_a_device_cannot_build_tensorrt(tmp_path: Path) -> None:
    machine = Described(tmp_path, cuda=driver(), tensorrt=trt("11.4.0.106"))
    verdict = row(machine, "tensorrt").build
    assert not verdict.able
    assert "TensorRT builds on the GPU that will run the engine" in verdict.reason


def test_verdicts__of_onnxruntime_on_cuda_believe_the_session_not_the_list(tmp_path: Path) -> None:
    reason = "asked for CUDAExecutionProvider, it opened CPUExecutionProvider"
    machine = Described(tmp_path, cuda=driver(RTX_4090), onnxruntime=onnxruntime(cuda=reason))
    assert not row(machine, "onnxruntime:cuda").run.able
    assert reason in row(machine, "onnxruntime:cuda").run.reason
    machine.given["onnxruntime"] = onnxruntime(cuda=None)
    assert row(machine, "onnxruntime:cuda").run.able


def test_gather__a_probe_that_fails_costs_its_own_row_only(jetson: Described) -> None:
    jetson.given["tensorrt"] = ProbeError("the process that tried it was ended by SIGSEGV")
    jetson.given["onnxruntime"] = RuntimeError("metadata\nis odd")
    facts = gather(jetson)
    assert facts["tensorrt"] == Fact("tensorrt", None, "the process that tried it was ended by SIGSEGV")
    assert fact_line(facts["onnxruntime"]) == "could not be read (RuntimeError: metadata is odd)"
    assert facts["jetpack"].value["l4t"] == "36.4.3"
    assert "tensorrt could not be read" in row(jetson, "tensorrt").run.reason
    assert "onnxruntime could not be read" in row(jetson, "onnxruntime:cpu").build.reason


def test_doctor__survives_a_machine_on_which_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("text", "ask", "disk", "folders", "module_folder", "platform", "python"):
        monkeypatch.setattr(Machine, name, broken)
    monkeypatch.setattr(Machine, "distributions", property(broken))
    done = command()
    assert done.exit_code == 0, done.output
    assert done.stdout.count("could not be read") >= 10
    assert all(f"{backend:<17} run    no" in done.stdout for backend in BACKEND_ROWS)
    report = json.loads(command("--json").stdout)
    assert sum(fact["error"] is not None for fact in report["facts"].values()) >= 10


def test_ask_child__names_the_signal_that_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_file(
        tmp_path,
        "crashing.py",
        "import os, time\n"
        "def main(what):\n"
        "    if what == 'sleep':\n        time.sleep(60)\n"
        "    os.kill(os.getpid(), 11) if what == 'crash' else print('half a word', end='')\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ProbeError, match="ended by SIGSEGV"):
        ask_child("crashing", "crash")
    with pytest.raises(ProbeError, match="the process that tried it ended with 0"):
        ask_child("crashing", "talk")
    with pytest.raises(ProbeError, match=r"no answer in 0\.5 s"):
        ask_child("crashing", "sleep", timeout_seconds=0.5)


def test_findings__name_both_onnxruntimes_a_foreign_kernels_and_the_wrong_libnvinfer(tmp_path: Path) -> None:
    packages = {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1", "kernels": "0.11.0"}
    answer = onnxruntime(cuda=None) | {"tensorrt_provider_needs": ["libnvinfer.so.10"]}
    machine = Described(tmp_path, packages, onnxruntime=answer, tensorrt=trt("11.4.0.106"))
    found = [finding.line() for finding in findings_for(gather(machine), ())]
    assert len(found) == 3
    assert found[0].startswith("onnxruntime and onnxruntime-gpu: both install the same files")
    assert "links libnvinfer.so.10, so it cannot load" in found[1]
    assert found[2].startswith("package kernels 0.11.0 at ")


def test_findings__see_a_kernels_package_that_hides_ours(tmp_path: Path) -> None:
    with_file(tmp_path, "site/kernels/__init__.py", "")
    machine = Described(tmp_path)
    machine.module_folder = lambda module: tmp_path / "site" / module  # type: ignore[method-assign]
    assert gather(machine)["kernels"].value["ours"] is False
    assert any("one of them replaces the other" in f.line() for f in findings_for(gather(machine), ()))


@pytest.mark.parametrize(
    ("version", "target", "issues"),
    [
        ("10.3.0.26", "sm_89", {"4723"}),
        ("10.4.0.26", "sm_89", {"4742", "112"}),
        ("10.5.0.18", "sm_89", {"112"}),
        ("10.6", "sm_89", set()),
        ("10.7.0.23", "sm_89", {"4333"}),
        ("10.13.3.9", "sm_89", set()),
        ("10.16.1.11", "sm_120", {"4837", "4739"}),
        ("11.1.0.106", "sm_89", {"4853", "4813"}),
        ("11.4.0.106", "sm_120", set()),
    ],
)
def test_findings__of_tensorrt_depend_on_version_and_device(
    tmp_path: Path, version: str, target: str, issues: set[str]
) -> None:
    machine = Described(
        tmp_path, cuda=driver(RTX_4090 | {"target": target}), tensorrt=trt(version), onnxruntime=ABSENT
    )
    found = {
        f.source.rpartition("/")[2] for f in findings_for(gather(machine)) if f.found.startswith("tensorrt")
    }
    assert found == issues


def test_known_bad__every_row_has_a_source_and_a_range_that_holds_something() -> None:
    for entry in TABLE:
        assert entry.source.startswith("https://"), entry
        assert entry.breaks, entry
        assert entry.cure, entry
        first, below = ([int(p) for p in v.split(".")] for v in (entry.first, entry.below or "999"))
        assert first < below, entry


def test_needed_libraries__reads_what_the_loader_reads(tmp_path: Path) -> None:
    import onnxruntime as installed

    path = next((Path(installed.__file__).parent / "capi").glob("*.so"))
    assert "libc.so.6" in needed_libraries(path)
    readable = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=False)
    if readable.returncode == 0:
        named = [
            line.split("[")[1].rstrip("]") for line in readable.stdout.splitlines() if "(NEEDED)" in line
        ]
        assert needed_libraries(path) == named
    content = path.read_bytes()
    for damaged in (b"no ELF at all", b"\x7fELF\x02\x01", content[:200]):
        (tmp_path / "x.so").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.so: found"):
            needed_libraries(tmp_path / "x.so")


def test_needed_libraries__follows_addresses_that_are_not_offsets(tmp_path: Path) -> None:
    """A hand-made file: its one segment lies at offset 0 and is loaded at 0x10000."""
    base, table, strings = 0x10000, 176, 240
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 2) + bytes(6)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, 512, 512, 8)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, table, base + table, base + table, 48, 48, 8)
    entries = struct.pack("<qQqQqQ", 1, 1, 5, base + strings, 0, 0)
    content = (header + load + dynamic + entries).ljust(strings, b"\0") + b"\0libnvinfer.so.10\0"
    (tmp_path / "x.so").write_bytes(content.ljust(600, b"\0"))
    assert needed_libraries(tmp_path / "x.so") == ["libnvinfer.so.10"]


def test_module_folder__does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_file(tmp_path, "loud_package/__init__.py", "raise RuntimeError('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Machine().module_folder("loud_package") == tmp_path / "loud_package"
    assert Machine().module_folder("no_such_package") is None
