"""Fuzzes the engine: `python tests/fuzz SECONDS [TARGET ...]`, from the project's root; `make fuzz` does.

Builds tests/probe with clang (flavour `fuzz`: libFuzzer, AddressSanitizer, UndefinedBehaviorSanitizer) into build/fuzz, gives
each target its share of the time, and prints what each did. Found inputs go to build/fuzz/TARGET; `--keep` puts those
that cover the most into tests/fuzz/corpus. Ends with 1, and the path of the input, where a rule was broken.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILT = ROOT / "build" / "fuzz"
TARGETS = (
    "request_head",
    "response_head",
    "chunked",
    "json",
    "conversation",
    "conversation_small",
    "exchange",
    "exchange_small",
)
SMALL = "_small"  # of a target's name: the same in the world with small constants, from the same corpus
CORPUS_MOST = 50  # inputs a target that `--keep` chooses
# Of the time; the others have 1.
SHARES = {"conversation": 3, "conversation_small": 3, "exchange": 2, "exchange_small": 2}
LENGTHS = {"conversation": 2048, "exchange": 200}  # of inputs at most, where they are no bytes of HTTP but scripts


def ask_clang(*arguments: str) -> str:
    return subprocess.run(["clang", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def build() -> None:
    clang = {"LLMPIPE_BUILD": "fuzz", "CC": "clang", "LDSHARED": "clang -shared"}
    command = [sys.executable, "tests/probe/setup.py", "--quiet", "build_ext", "--force"]
    folders = ["--build-lib", str(BUILT / "lib"), "--build-temp", str(BUILT / "temp")]
    environment = {**os.environ, **clang}
    result = subprocess.run(
        [*command, *folders], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(result.stdout + result.stderr)


def fuzz(target: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs libFuzzer in a process of its own."""
    runtime = Path(ask_clang("--print-resource-dir")) / f"lib/linux/libclang_rt.asan-{platform.machine()}.so"
    program = BUILT / f"fuzz-{target}"
    world = "llmpipe_world" + (SMALL if target.endswith(SMALL) else "")
    program.write_text(
        f"#!{sys.executable}\nimport sys, {world}, functools, scripts\n"
        f"judge = functools.partial(scripts.judge, {world})\n"
        f"sys.exit({world}.fuzz('{target.removesuffix(SMALL)}', sys.argv, judge))\n"
    )
    program.chmod(0o755)
    sanitizers = {
        "LD_PRELOAD": str(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": f"{BUILT / 'lib'}:{ROOT / 'tests'}",
    }
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, **sanitizers},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def keep(target: str, corpus: Path, found: Path) -> None:
    """Leaves those inputs in the corpus that cover the most, one after the other; what has a name of its own stays."""
    control, merged = BUILT / f"{target}.control", BUILT / f"{target}.merged"
    control.unlink(missing_ok=True)
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    fuzz(target, ["-merge=1", f"-merge_control_file={control}", str(merged), str(corpus), str(found)])
    lines = control.read_text().splitlines()
    paths = [Path(line) for line in lines[2 : 2 + int(lines[0])]]
    features = {paths[int(line.split()[1])]: set(line.split()[2:]) for line in lines if line.startswith("FT ")}
    covered: set[str] = set()
    chosen: set[str] = set()
    for _ in range(CORPUS_MOST):
        best = max(features, key=lambda path: (len(features[path] - covered), -path.stat().st_size))
        if not features[best] - covered:
            break
        covered |= features[best]
        if best.parent != corpus:
            shutil.copy(best, corpus / best.name)
        features[best] = set()
        chosen.add(best.name)
    for path in corpus.iterdir():
        if path.name not in chosen and re.fullmatch("[0-9a-f]{40}", path.name):
            path.unlink()


def report(target: str, output: str) -> str:
    """One line: how many inputs, how much they cover."""
    runs = re.findall(r"stat::number_of_executed_units: +(\d+)", output)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
    cov, features, corpus = covered[-1] if covered else ("?", "?", "?")
    return (
        f"{target:18} {runs[-1] if runs else '?':>9} inputs  {cov:>5} edges  {features:>6} features  {corpus:>5} kept"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, help="in all")
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="target")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0 is another one each time")
    parser.add_argument("--keep", action="store_true", help="minimise into tests/fuzz/corpus")
    arguments = parser.parse_args()
    build()
    parts = sum(SHARES.get(target, 1) for target in arguments.targets)
    for target in arguments.targets:
        corpus, found = HERE / "corpus" / target.removesuffix(SMALL), BUILT / target
        crashes = BUILT / "crashes"
        for folder in (corpus, found, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        seconds = max(1, arguments.seconds * SHARES.get(target, 1) // parts)
        options = [f"-max_total_time={seconds}", "-print_final_stats=1", "-timeout=60", "-rss_limit_mb=4096"]
        options.append(f"-seed={arguments.seed}")
        options += [
            f"-max_len={LENGTHS.get(target.removesuffix(SMALL), 600)}",
            f"-artifact_prefix={crashes}/{target}-",
        ]
        if target.removesuffix(SMALL) not in LENGTHS:
            options.append(f"-dict={HERE / 'http.dict'}")
        result = fuzz(target, [*options, str(found), str(corpus)])
        print(report(target, result.stdout), flush=True)
        if result.returncode:
            print("\n".join(result.stdout.splitlines()[-60:]))
            paths = re.findall(r"Test unit written to (\S+)", result.stdout)
            print(f"{target}: {paths[-1] if paths else 'no input was written'}")
            return 1
        if arguments.keep and not target.endswith(SMALL):
            keep(target, corpus, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
