/**
 * The benchmark: everyone who serves a disk, side by side in one run. This folder holds the programs that are compared, the
 * load that they get, and the report; nothing of the product. `make bench` runs it; CONTRIBUTING says with what options.
 */

import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { keepAwake } from "./awake.ts";
import type { Case } from "./cases.ts";
import { type ContenderKind, takesPart } from "./contenders.ts";
import { history } from "./history.ts";
import { busyShare, describeCommit, describeMachine, watchStolen } from "./machine.ts";
import { digits } from "./markdown.ts";
import { type Options, parseOptions } from "./options.ts";
import { plot } from "./plot.ts";
import { flushCases, probeFlushes } from "./probes/flushes.ts";
import { probeMemory } from "./probes/memory.ts";
import { probeChain, probeStarting } from "./probes/starting.ts";
import { probeSystemCalls, systemCallsCase } from "./probes/system-calls.ts";
import type { ProbeGroup } from "./probes.ts";
import { killAll } from "./processes.ts";
import { report } from "./report.ts";
import { type CacheMode, type CaseResult, isMeasurement, type Outcome, type Probe, type Run } from "./results.ts";
import { makeScratch, type Scratch } from "./scratch.ts";
import { Session } from "./session.ts";
import { addSitting } from "./sittings.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const COMMANDS = join(ROOT, "build/bin");
const OUTPUT = join(ROOT, "build/bench");
const RESULTS = join(import.meta.dirname, "RESULTS.md");
const PLOT = join(import.meta.dirname, "results.svg");

async function main(): Promise<void> {
  await mkdir(OUTPUT, { recursive: true });
  const options = parseOptions(process.env, OUTPUT);
  const folder = await mkdtemp(join(options.folder, "run-"));
  const fragmented = options.cases.some(({ image }) => image === "empty" || image === "largest");
  const scratch = fragmented ? await makeScratch(folder) : undefined;
  const cleanUp = async () => {
    killAll();
    await scratch?.remove();
    await rm(folder, { recursive: true, force: true });
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => void cleanUp().finally(() => process.exit(1)));
  }
  try {
    if (scratch?.reason !== undefined) {
      say(`fragmented images go to the machine's own file system: ${scratch.reason}`);
    }
    const place = scratch ?? { folder, reason: undefined, enter: async () => {}, remove: async () => {} };
    const run = await bench(options, folder, place);
    const sitting = options.sitting && join(OUTPUT, `${options.sitting}.json`);
    await keep(sitting === undefined ? run : await addSitting(sitting, run));
  } finally {
    await cleanUp();
  }
}

async function bench(options: Options, folder: string, scratch: Scratch): Promise<Run> {
  const started = new Date();
  const [machine, commit, busyBefore] = [await describeMachine(folder), await describeCommit(), await busyShare()];
  say(`${machine.cpu}, ${machine.cores} cores; busy: ${Math.round(100 * busyBefore)} %`);
  say("making the disks");
  const session = new Session(options, folder, scratch.folder, COMMANDS);
  const counting = options.probes.some(({ name }) => name === "system-calls" || name === "flushes");
  await session.prepare([...options.cases, ...(counting ? [systemCallsCase, ...flushCases] : [])]);
  const stolen = await watchStolen();
  const awake = await keepAwake();
  const results: CaseResult[] = [];
  for (const mode of options.modes) {
    await session.enter(mode);
    for (const one of options.cases.filter(({ modes }) => modes.includes(mode))) {
      await scratch.enter(one, mode);
      results.push(await runCase(session, one, mode, options));
    }
  }
  await session.stop();
  const probes: Probe[] = [];
  for (const { name } of options.probes) {
    say(`probes: ${name}`);
    probes.push(...(await probeGroup(name, session, options, folder)));
  }
  await awake.end();
  return {
    started: started.toISOString(),
    minutes: (Date.now() - started.getTime()) / 60_000,
    commit,
    machine,
    load: { busyBefore, stolen: await stolen(), awake: awake.by },
    rounds: options.rounds,
    seconds: options.seconds,
    diskBytes: options.diskBytes,
    complete: options.complete,
    results,
    probes,
  };
}

function probeGroup(name: ProbeGroup["name"], session: Session, options: Options, folder: string): Promise<Probe[]> {
  switch (name) {
    case "starting":
      return probeStarting(folder, COMMANDS);
    case "chain":
      return probeChain(folder, COMMANDS);
    case "memory":
      return probeMemory(folder, COMMANDS);
    case "system-calls":
      return probeSystemCalls(session, options.contenders);
    case "flushes":
      return probeFlushes(session, options.contenders);
  }
}

async function runCase(session: Session, one: Case, mode: CacheMode, options: Options): Promise<CaseResult> {
  const kinds = options.contenders.filter((kind) => takesPart(kind, one, mode));
  say(`${one.title}, ${mode}`);
  await session.settle(one, kinds);
  const outcomes: Record<string, Outcome[]> = Object.fromEntries(kinds.map(({ name }) => [name, []]));
  for (let round = 0; round < options.rounds; round++) {
    for (const kind of rotated(kinds, round)) {
      const outcome = await session.measure(kind, one, round + 1);
      outcomes[kind.name]?.push(outcome);
      say(`  ${kind.title.padEnd(26)} ${describe(outcome)}`);
    }
  }
  return { case: one.name, mode, outcomes };
}

/** Every round begins with another one, so that nobody always follows the same neighbour's mess. */
function rotated(kinds: readonly ContenderKind[], round: number): ContenderKind[] {
  const by = round % Math.max(1, kinds.length);
  return [...kinds.slice(by), ...kinds.slice(0, by)];
}

function describe(outcome: Outcome): string {
  if (!isMeasurement(outcome)) {
    return `failed: ${outcome.error}`;
  }
  const { perSecond, megabytesPerSecond, cpuMicroseconds } = outcome;
  return `${digits(perSecond / 1000)} k/s, ${digits(megabytesPerSecond)} MB/s, ${digits(cpuMicroseconds)} µs CPU`;
}

/** Figures go to build/bench, the report to the terminal, and to RESULTS.md when nothing was left out. */
async function keep(run: Run): Promise<void> {
  const text = `# Results of \`make bench\`\n\n${report(run)}\n`;
  process.stdout.write(`\n${text}\n`);
  const name = `${run.started.slice(0, 19).replaceAll(":", "")}.json`;
  await writeFile(join(OUTPUT, name), `${JSON.stringify(run, undefined, 2)}\n`);
  await writeFile(join(OUTPUT, "latest.md"), text);
  await writeFile(join(OUTPUT, "results.svg"), plot(run));
  say(`figures: ${join(OUTPUT, name)}`);
  if (run.complete) {
    const previous = await readFile(RESULTS, "utf8").catch(() => "");
    await writeFile(RESULTS, `${text}\n${history(previous, run)}\n`);
    await writeFile(PLOT, plot(run));
    say(`report: ${RESULTS}`);
  }
}

function say(message: string): void {
  process.stderr.write(`${message}\n`);
}

try {
  await main();
} catch (error) {
  say(`bench: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
