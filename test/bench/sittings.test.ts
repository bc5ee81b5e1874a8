import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { allCases } from "./cases.ts";
import type { CaseResult, Run } from "./results.ts";
import { addSitting } from "./sittings.ts";

function run(commit: string, results: readonly CaseResult[]): Run {
  return {
    started: "2026-01-02T03:04:05.678Z",
    minutes: 1,
    commit,
    machine: { cpu: "A CPU", cores: 2, memoryBytes: 1, kernel: "6.1", fileSystem: "ext4", versions: {} },
    load: { busyBefore: 0, stolen: 0, awake: "polling" },
    rounds: 3,
    seconds: 1,
    diskBytes: 1,
    complete: false,
    results,
    probes: [{ name: "first-answer", values: [1] }],
  };
}

function result(name: string, mode: "buffered" | "direct", what: string): CaseResult {
  const measurement = {
    operations: 1,
    perSecond: 1,
    megabytesPerSecond: 1,
    latency: { p50: 1, p99: 1, p999: 1 },
    cpuMicroseconds: 1,
    residentBytes: Number.NaN,
  };
  return { case: name, mode, outcomes: { raw: [measurement, { error: what }] } };
}

test("sittings add up, and what is measured again counts anew", async () => {
  const folder = await mkdtemp(join(tmpdir(), "sittings-"));
  try {
    const file = join(folder, "sitting.json");
    await addSitting(
      file,
      run("a", [result("randread-4k-d32", "buffered", "old"), result("read-1m-d4", "buffered", "kept")]),
    );
    const whole = await addSitting(file, run("b", [result("randread-4k-d32", "buffered", "new")]));
    expect(whole.results.map(({ case: name, outcomes }) => [name, outcomes.raw?.[1]])).toEqual([
      ["randread-4k-d32", { error: "new" }],
      ["read-1m-d4", { error: "kept" }],
    ]);
    expect(whole).toMatchObject({ commit: "a to b", minutes: 2, complete: false });
    expect(whole.probes).toHaveLength(1);
    expect(whole.results[1]?.outcomes.raw?.[0]).toMatchObject({ residentBytes: Number.NaN });
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("sittings that have all that runs by default make a complete run", async () => {
  const folder = await mkdtemp(join(tmpdir(), "sittings-"));
  try {
    const file = join(folder, "sitting.json");
    const results = allCases
      .filter(({ core }) => core)
      .flatMap(({ name, modes }) => modes.map((mode) => result(name, mode, "")));
    await addSitting(file, run("a", results.slice(1)));
    expect((await addSitting(file, run("a", results.slice(0, 1)))).complete).toBe(false);
    const names = ["chain-answer", "resident-disk", "system-calls-ours-nbd", "flushes-d1"];
    const probes = names.map((name) => ({ name, values: [1] }));
    expect((await addSitting(file, { ...run("a", []), probes })).complete).toBe(true);
  } finally {
    await rm(folder, { recursive: true });
  }
});
