/** A run in several sittings: on a machine that others use too, one case at a time when it is quiet. */

import { readFile, writeFile } from "node:fs/promises";
import * as z from "zod";
import { allCases } from "./cases.ts";
import { probeGroups, probeKinds } from "./probes.ts";
import type { CaseResult, Probe, Run } from "./results.ts";

/** JSON has no NaN. */
const figure = z
  .number()
  .nullable()
  .transform((value) => value ?? Number.NaN);

const measurementSchema = z.object({
  operations: figure,
  perSecond: figure,
  megabytesPerSecond: figure,
  latency: z.object({ p50: figure, p99: figure, p999: figure }),
  cpuMicroseconds: figure,
  residentBytes: figure,
  busyThreads: z.number().optional(),
  collections: z.object({ count: z.number(), longest: z.number() }).optional(),
});

const runSchema = z.object({
  started: z.string(),
  minutes: figure,
  commit: z.string(),
  machine: z.object({
    cpu: z.string(),
    cores: z.number(),
    memoryBytes: z.number(),
    kernel: z.string(),
    fileSystem: z.string(),
    versions: z.record(z.string(), z.string()),
  }),
  load: z.object({ busyBefore: figure, stolen: figure, awake: z.enum(["polling", "loops"]) }),
  rounds: z.number(),
  seconds: z.number(),
  diskBytes: z.number(),
  complete: z.boolean(),
  results: z.array(
    z.object({
      case: z.string(),
      mode: z.enum(["buffered", "direct"]),
      outcomes: z.record(z.string(), z.array(z.union([measurementSchema, z.object({ error: z.string() })]))),
    }),
  ),
  probes: z.array(z.object({ name: z.string(), values: z.array(figure), note: z.string().optional() })),
});

/**
 * Adds a run to what earlier sittings have left in a file, and keeps the whole there.
 * @throws an error when the file holds something else.
 */
export async function addSitting(path: string, run: Run): Promise<Run> {
  const text = await readFile(path, "utf8").catch(() => undefined);
  const whole = text === undefined ? run : joined(runSchema.parse(JSON.parse(text)), run);
  await writeFile(path, `${JSON.stringify(whole, undefined, 2)}\n`);
  return whole;
}

/** Two runs as one. Cases are never mixed: who ran again counts anew, with all of its contenders and rounds. */
export function joined(earlier: Run, later: Run): Run {
  const again = new Set(later.results.map(keyOf));
  const results = [...earlier.results.filter((result) => !again.has(keyOf(result))), ...later.results];
  const order = allCases.map(({ name }) => name);
  results.sort((a, b) => a.mode.localeCompare(b.mode) || order.indexOf(a.case) - order.indexOf(b.case));
  const probed = new Set(later.probes.map(({ name }) => name));
  const probes = [...earlier.probes.filter(({ name }) => !probed.has(name)), ...later.probes];
  return {
    ...later,
    started: earlier.started,
    commit: earlier.commit === later.commit ? later.commit : `${earlier.commit} to ${later.commit}`,
    minutes: earlier.minutes + later.minutes,
    load: {
      busyBefore: Math.max(earlier.load.busyBefore, later.load.busyBefore),
      stolen: Math.max(earlier.load.stolen, later.load.stolen),
      awake: later.load.awake,
    },
    rounds: Math.min(earlier.rounds, later.rounds),
    seconds: Math.min(earlier.seconds, later.seconds),
    complete: later.complete || (hasCases(results) && hasProbes(probes)),
    results,
    probes,
  };
}

/** Whether all that runs by default is there. */
function hasCases(results: readonly CaseResult[]): boolean {
  const keys = new Set(results.map(keyOf));
  return allCases.every(
    ({ core, modes, name }) => !core || modes.every((mode) => keys.has(keyOf({ case: name, mode }))),
  );
}

function hasProbes(probes: readonly Probe[]): boolean {
  return probeGroups.every(({ name: group }) =>
    probeKinds.some((kind) => kind.group === group && probes.some(({ name }) => name === kind.name)),
  );
}

function keyOf(result: { readonly case: string; readonly mode: string }): string {
  return `${result.mode} ${result.case}`;
}
