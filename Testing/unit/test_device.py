"""Devices: what is there is found, what is not is said with a way out, and out-of-memory errors are known as such."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from MLILib import device
from MLILib.errors import BadInput, MissingPackage

torch = pytest.importorskip("torch")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


class TestResolve:
    def test_auto_without_a_gpu_is_the_cpu(self, no_gpu: None) -> None:
        assert device.resolve("auto") == torch.device("cpu")

    def test_auto_with_a_gpu_is_the_first(self, two_gpus: None) -> None:
        assert device.resolve("auto") == torch.device("cuda:0")

    @pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:0", 0), ("CUDA:1", 1)])
    def test_cuda_by_number(self, two_gpus: None, name: str, index: int) -> None:
        assert device.resolve(name) == torch.device(f"cuda:{index}")

    def test_a_gpu_too_many(self, two_gpus: None) -> None:
        with pytest.raises(BadInput, match=r"has 2 NVIDIA GPUs.*cuda:0 or cuda:1"):
            device.resolve("cuda:2")

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
    def test_what_is_not_there_has_a_cause_and_a_remedy(self, no_gpu: None, name: str) -> None:
        with pytest.raises(BadInput) as caught:
            device.resolve(name)
        assert name in caught.value.what
        assert caught.value.cause
        assert "auto or cpu" in caught.value.remedy

    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:1x", "cuda:0; cpu"])
    def test_an_unknown_name_lists_the_known(self, two_gpus: None, name: str) -> None:
        with pytest.raises(BadInput, match="Choose auto, cpu, cuda"):
            device.resolve(name)

    def test_torch_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingPackage, match="torch is not installed"):
            device.resolve("auto")

    def test_the_module_itself_needs_no_torch(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = None; from MLILib import device; print(device.free_host_memory() > 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True"


class TestMemory:
    # That the figure falls by what a process takes cannot be asked for: Linux keeps freed pages aside for each
    # processor, counts them neither as free nor as taken, and hands them out again first.
    def test_it_is_less_than_there_is_and_some_is_left(self) -> None:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0.01 * installed < device.free_memory(torch.device("cpu")) < installed

    def test_the_kernels_own_figure(self, tmp_path: Path) -> None:
        info = tmp_path / "meminfo"
        info.write_text("MemTotal:  24684100 kB\nMemFree:  1000 kB\nMemAvailable:   24166992 kB\nCached: 7 kB\n")
        assert device._free_linux(info) == 24166992 * 1024
        info.write_text("MemTotal:  24684100 kB\nMemFree:  1000 kB\n")  # a kernel before 3.14
        assert device._free_linux(info) is None
        assert device._free_linux(tmp_path / "none") is None

    def test_a_containers_limit_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "_free_linux", lambda: 8_000_000_000)
        monkeypatch.setattr(device, "_free_cgroup", lambda: 1_000_000_000)
        monkeypatch.setattr(sys, "platform", "linux")
        assert device.free_host_memory() == 1_000_000_000

    @pytest.mark.parametrize(
        ("version", "own", "groups", "free"),
        [
            # folder of the group: limit, used, file cache that can be given up
            (2, "0::/", {"": ("8000", 5000, 1000)}, 4000),
            (2, "0::/", {"": ("max", 5000, 1000)}, None),
            (2, "0::/job/step", {"job/step": ("max", 10, 0), "job": ("8000", 5000, 0)}, 3000),
            (2, "0::/job/step", {"job/step": ("2000", 10, 5), "job": ("8000", 5000, 0)}, 1995),
            (2, "0::/docker/abc", {"": ("8000", 5000, 0)}, 3000),  # the host's path, within the container
            (2, "0::/job", {"other": ("10", 5, 0)}, None),
            (1, "9:name=systemd:/x\n4:memory:/job\n0::/", {"memory/job": ("6000", 5000, 7)}, 1007),
            (1, "4:cpu,memory:/job", {"memory/job": ("6000", 5000, 0), "memory": ("5500", 5000, 0)}, 500),
            (1, "4:memory:/", {"memory": (str(9223372036854771712), 5000, 0)}, None),
        ],
    )
    def test_limits_of_control_groups(
        self, tmp_path: Path, version: int, own: str, groups: dict[str, tuple[str, int, int]], free: int | None
    ) -> None:
        limit, used, cache = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.max", "memory.current", "inactive_file"),
        }[version]
        (tmp_path / "own").write_text(own + "\n")
        for name, (top, now, files) in groups.items():
            folder = tmp_path / "cgroup" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / limit).write_text(top + "\n")
            (folder / used).write_text(f"{now}\n")
            (folder / "memory.stat").write_text(f"rss 3\n{cache} {files}\nunevictable 0\n")
        assert device._free_cgroup(tmp_path / "cgroup", tmp_path / "own") == free

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
    def test_free_gpu_memory_goes_down_by_what_is_taken(self) -> None:
        gpu = device.resolve("cuda")
        before = device.free_memory(gpu)
        block = torch.zeros(100_000_000, device=gpu)
        assert 0.3e9 < before - device.free_memory(gpu) < 0.6e9
        assert block.device == gpu

    def test_the_cpu_has_a_name(self) -> None:
        assert device.describe(torch.device("cpu")) == "the CPU"


class TestOutOfMemory:
    def test_the_cpus_allocator_is_known(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        assert device.is_out_of_memory(caught.value)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
            RuntimeError("Invalid buffer size: 40.00 GB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
            RuntimeError("[enforce fail at alloc_cpu.cpp] data. DefaultCPUAllocator: not enough memory: you tried"),
        ],
    )
    def test_what_the_allocators_say_is_known(self, error: BaseException) -> None:
        assert device.is_out_of_memory(error)

    def test_also_behind_another_error(self) -> None:
        outer = RuntimeError("applying transform")
        outer.__cause__ = MemoryError()
        assert device.is_out_of_memory(outer)

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(28, "")],
    )
    def test_other_errors_are_not(self, error: BaseException) -> None:
        assert not device.is_out_of_memory(error)
