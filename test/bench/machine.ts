/** The machine: what it is, and what else it does. */

import { readFile } from "node:fs/promises";
import { cpus, release, totalmem } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { run } from "./processes.ts";
import type { Machine } from "./results.ts";

const SAMPLE_MS = 1000;

/** CPU time of the whole machine since it started, in ticks. */
interface Ticks {
  readonly idle: number;
  readonly stolen: number;
  readonly all: number;
}

async function ticks(): Promise<Ticks> {
  const [line = ""] = (await readFile("/proc/stat", "latin1")).split("\n", 1);
  // user nice system idle iowait irq softirq steal; what comes then is contained in the first two.
  const fields = line.trim().split(/\s+/).slice(1, 9).map(Number);
  return {
    idle: (fields[3] ?? 0) + (fields[4] ?? 0),
    stolen: fields[7] ?? 0,
    all: fields.reduce((sum, value) => sum + value, 0),
  };
}

/** How much of the machine's CPU time is in use, from 0 to 1. */
export async function busyShare(): Promise<number> {
  const before = await ticks();
  await sleep(SAMPLE_MS);
  const after = await ticks();
  return 1 - (after.idle - before.idle) / Math.max(1, after.all - before.all);
}

/** Watches how much CPU time the hypervisor gives to others: the function returned says, from 0 to 1. */
export async function watchStolen(): Promise<() => Promise<number>> {
  const before = await ticks();
  return async () => {
    const after = await ticks();
    return (after.stolen - before.stolen) / Math.max(1, after.all - before.all);
  };
}

/** What the machine is, with a folder whose file system is measured. */
export async function describeMachine(folder: string): Promise<Machine> {
  const [fileSystem, fio, nbdkit, qemu] = await Promise.all([
    firstLine("findmnt", ["--noheadings", "--output=FSTYPE", "--target", folder]),
    firstLine("fio", ["--version"]),
    firstLine("nbdkit", ["--version"]),
    firstLine("qemu-nbd", ["--version"]),
  ]);
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    fileSystem,
    versions: {
      Node: process.version,
      fio: version(fio),
      nbdkit: version(nbdkit),
      qemu: version(qemu),
    },
  };
}

/** The commit that is checked out, with a mark when files differ from it. */
export async function describeCommit(): Promise<string> {
  return firstLine("git", ["describe", "--always", "--dirty", "--exclude=*"]);
}

async function firstLine(program: string, args: readonly string[]): Promise<string> {
  const [line = ""] = (await run({ program, args }).catch(() => "unknown")).split("\n", 1);
  return line.trim();
}

function version(text: string): string {
  return /\d+(\.\d+)+/.exec(text)?.[0] ?? text;
}
