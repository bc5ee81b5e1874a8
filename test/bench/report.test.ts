import { expect, test } from "vitest";
import { judge } from "./bars.ts";
import { history } from "./history.ts";
import { report } from "./report.ts";
import type { CaseResult, Outcome, Run } from "./results.ts";

const CASE = "randread-4k-d32";

function outcome(perSecond: number): Outcome {
  return {
    operations: perSecond,
    perSecond,
    megabytesPerSecond: perSecond * 0.004096,
    latency: { p50: 1, p99: 2, p999: 3 },
    cpuMicroseconds: 4,
    residentBytes: 5 << 20,
  };
}

function result(outcomes: Record<string, Outcome[]>): CaseResult {
  return { case: CASE, mode: "buffered", outcomes };
}

function run(results: readonly CaseResult[]): Run {
  return {
    started: "2026-01-02T03:04:05.678Z",
    minutes: 3.21,
    commit: "abc1234",
    machine: {
      cpu: "A CPU",
      cores: 2,
      memoryBytes: 8 * 2 ** 30,
      kernel: "6.1",
      fileSystem: "ext4",
      versions: { fio: "3" },
    },
    load: { busyBefore: 0.25, stolen: 0.01 },
    rounds: 2,
    seconds: 1,
    diskBytes: 2 ** 30,
    complete: true,
    results,
    probes: [{ name: "first-answer", values: [100, 151, 152] }],
  };
}

const failure: Outcome = { error: "it fell over" };
const RESULT = result({
  raw: [outcome(100_000), outcome(200_000)],
  "qemu-raw": [outcome(20_000), outcome(20_000)],
  "nbdkit-file": [outcome(40_000), failure],
  "nbdkit-memory": [outcome(20_000), outcome(20_000)],
  "ours-nbd": [outcome(30_000), outcome(60_000)],
  "ours-ring": [failure, failure],
});

test("bars are judged by the median of the rounds' ratios, and never met without figures", () => {
  const verdicts = judge(
    [
      { case: CASE, mode: "buffered", contender: "ours-nbd", figure: "rate", than: ["qemu-raw"], least: 2.25 },
      { case: CASE, mode: "buffered", contender: "ours-nbd", figure: "rate", than: ["qemu-raw"], least: 2.26 },
      { case: CASE, mode: "buffered", contender: "ours-nbd", figure: "rate", than: ["qemu-raw", "raw"], least: 0.3 },
      { case: CASE, mode: "buffered", contender: "ours-ring", figure: "rate", than: ["raw"], least: 0 },
      { case: CASE, mode: "buffered", contender: "raw", figure: "rate", than: ["ours-ring"], least: 0 },
      { case: "another", mode: "buffered", contender: "ours-nbd", figure: "rate", than: ["raw"], least: 0 },
    ],
    [RESULT],
  );
  expect(verdicts.map(({ met, ratio }) => [met, ratio?.median])).toEqual([
    [true, 2.25],
    [false, 2.25],
    [true, 0.3],
    [false, undefined],
    [false, undefined],
  ]);
});

test("bars can be about CPU time, of which less is better, and are left out when somebody didn't take part", () => {
  const bar = {
    case: CASE,
    mode: "buffered",
    contender: "ours-nbd",
    figure: "cpu",
    than: ["raw", "qemu-raw"],
  } as const;
  expect(
    judge(
      [
        { ...bar, most: 1 },
        { ...bar, most: 0.9 },
      ],
      [RESULT],
    ).map(({ met }) => met),
  ).toEqual([true, false]);
  expect(judge([{ ...bar, than: ["blktap"], most: 1 }], [RESULT])).toEqual([]);
});

test("the report has ratios, and failures as what they are", () => {
  const text = report(run([RESULT]));
  expect(text).toContain("2026-01-02 03:04 UTC, commit abc1234, 3.2 minutes.");
  expect(text).toMatch(
    /ours, NBD, 4 KiB random read, depth 32, buffered +\| +best of nbdkit file, nbdkit memory, qemu-nbd -f raw \| ≥ 1.50 \| 0.75 \(0.75–0.75\) +\| \*\*not met\*\* \|/,
  );
  expect(text).toMatch(
    /ours, ring, 4 KiB random read, depth 32, buffered +\| +raw file .* \| +failed \| \*\*not met\*\* \|/,
  );
  expect(text).toMatch(/\| ours, NBD +\| +45.0 \(30.0–60.0\) \|/);
  expect(text).toMatch(/first answered request over NBD +\| +≤ 150 ms \| 151 \(100–152\) ms \| \*\*not met\*\* \|/);
  expect(text).toContain(`- ours, ring: it fell over (${CASE} buffered)`);
  expect(text).toContain(`- nbdkit file: it fell over (${CASE} buffered)`);
});

test("the history keeps the latest runs, newest first", () => {
  let text = "";
  for (let day = 10; day < 22; day++) {
    text = `# Title\n\n- a list of something else\n\n${history(text, { ...run([RESULT]), started: `2026-01-${day}T00:00:00Z` })}\n`;
  }
  const lines = text
    .slice(text.indexOf("## History"))
    .split("\n")
    .filter((line) => line.startsWith("- "));
  expect(lines).toHaveLength(10);
  expect(lines[0]).toBe(
    "- 2026-01-21, abc1234, A CPU: –, –, failed, –, –, –, –, –, 0.75, –, –, –, –, –, –, –, –, –, –, –, –, 1.00, –",
  );
  expect(lines.at(-1)).toContain("2026-01-12");
});
