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
    load: { busyBefore: 0.25, stolen: 0.01, awake: "polling" },
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

test("a bar can be about a figure itself", () => {
  const bar = { case: CASE, mode: "buffered", contender: "ours-nbd", than: [] } as const;
  const busy = { ...outcome(500_000), busyThreads: 3 };
  const verdicts = judge(
    [
      // 4 µs for each of so many operations.
      { ...bar, figure: "cores", least: 2 },
      { ...bar, figure: "cores", least: 2.1 },
      { ...bar, figure: "threads", least: 3 },
    ],
    [result({ "ours-nbd": [busy, busy] })],
  );
  expect(verdicts.map(({ met, ratio }) => [met, ratio?.median])).toEqual([
    [true, 2],
    [false, 2],
    [true, 3],
  ]);
});

test("probes without figures are not met, and say why", () => {
  const probes = [
    { name: "system-calls-ours-nbd", values: [], note: "there is no perf" },
    { name: "chain-answer", values: [400, 500] },
  ];
  const text = report({ ...run([RESULT]), probes });
  expect(text).toMatch(/\| system calls for .*: ours over NBD +\| +≤ 1 \| +failed \| \*\*not met\*\* \|/);
  expect(text).toMatch(
    /\| from exec to the first answer of a chain of 30 images of 2040 GiB +\| +– \| 450 \(400–500\) ms \| +\|/,
  );
  expect(text).toContain("ours over NBD: there is no perf");
});

test("several disks stand side by side", () => {
  const many = (disks: number, perSecond: number): CaseResult => ({
    case: `randread-4k-d32-disks${disks}`,
    mode: "buffered",
    outcomes: { "ours-ring": [{ ...outcome(perSecond), busyThreads: disks }] },
  });
  const text = report(run([many(1, 100_000), many(16, 250_000)]));
  expect(text).toMatch(/\| +\| 1000\/s, 1 \| 1000\/s, 4 \| 1000\/s, 16 \|/);
  expect(text).toMatch(/\| ours, ring \| +100 \| +– \| +250 \| +0.40 \| +– \| +1.00 \| +1.00 \| +– \| +16.0 \|/);
  expect(text).toMatch(/16 disks at once, buffered: CPUs in use +\| +– \| ≥ 1.00 \| 1.00 \(1.00–1.00\) \| met \|/);
});

test("latencies while clients come and go stand beside those while they don't", () => {
  const latency = { p50: 10, p99: 20, p999: 30 };
  const visited: CaseResult = {
    case: "randread-4k-d32-visited",
    mode: "buffered",
    outcomes: {
      "nbdkit-file": [{ ...outcome(1000), latency }],
      "ours-nbd": [
        { ...outcome(1000), latency, collections: { count: 4, longest: 0.25 } },
        { ...outcome(1000), latency, collections: { count: 4, longest: 0.5 } },
      ],
    },
  };
  const text = report(run([RESULT, visited]));
  expect(text).toMatch(/\| nbdkit file \| 1.00 \| 2.00 \| +3.00 \| +10.0 \| +20.0 \| +30.0 \| +– \| +– \|/);
  expect(text).toMatch(/\| ours, NBD +\| 1.00 \| 2.00 \| +3.00 \| +10.0 \| +20.0 \| +30.0 \| +4.00 \| +0.50 \|/);
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
    "- 2026-01-21, abc1234, A CPU: –, –, failed, –, –, –, –, –, 0.75, –, –, –, –, –, –, –, –, –, –, –, –, –, –, 1.00, –, –",
  );
  expect(lines.at(-1)).toContain("2026-01-12");
});
