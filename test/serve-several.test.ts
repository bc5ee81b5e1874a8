// Several disks in one process: a thread for each, and none that stands in another's way.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { expectSame, MIB, pattern } from "./support/data.ts";
import { createWithQemu, readWithQemu } from "./support/images.ts";
import { outcomeOf, RunningProgram, run, temporaryDirectory, until } from "./support/run.ts";

const tapdisk = join(import.meta.dirname, "../build/bin/tapdisk");

interface Place {
  readonly disk: string;
  readonly socket: string;
}

async function places(count: number, sizeMib: number): Promise<Place[]> {
  const directory = temporaryDirectory();
  const all = Array.from({ length: count }, (_, index) => ({
    disk: join(directory, `${index}.vhd`),
    socket: join(directory, `${index}.sock`),
  }));
  for (const { disk } of all) {
    await createWithQemu(disk, sizeMib, { subformat: "dynamic", forceSize: true });
  }
  return all;
}

function serveArguments(all: readonly Place[]): string[] {
  return [
    "serve",
    ...all.map(({ disk }) => `vhd:${disk}`),
    ...all.flatMap(({ socket }) => ["--nbd", `unix:${socket}`]),
  ];
}

async function serveAll(all: readonly Place[]): Promise<RunningProgram> {
  const running = new RunningProgram(tapdisk, serveArguments(all));
  await until("all are served", () => running.stdout.split("\n").length > all.length, 30);
  return running;
}

async function stop(running: RunningProgram): Promise<void> {
  running.signal("SIGTERM");
  expect(await running.outcome(30)).toMatchObject({ status: 0, stderr: "" });
}

function uri({ socket }: Place): string {
  return `nbd+unix:///?socket=${socket}`;
}

/** Memory of a process that is its own, in bytes. (V8 maps its built-in code once more for each thread: the same pages.) */
function ownBytes(pid: number): number {
  const [, kib] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1")) ?? [];
  return Number(kib) * 1024;
}

test("each client gets its own disk, all at once", async () => {
  const all = await places(6, 32);
  const running = await serveAll(all);
  expect(running.stdout).toBe(all.map((place) => `${uri(place)}\n`).join(""));
  const data = all.map((_, index) => pattern(32 * MIB, index + 1));
  for (const [index, { disk }] of all.entries()) writeFileSync(`${disk}.data`, data[index] ?? "");
  await Promise.all(all.map((place) => run("nbdcopy", ["--flush", `${place.disk}.data`, uri(place)])));
  await stop(running);
  for (const [index, { disk }] of all.entries()) {
    expectSame(await readWithQemu(disk), data[index] ?? Buffer.alloc(0), disk);
  }
});

test("when one can't be opened, none is served and the others are left as they were", async () => {
  const all = await places(2, 32);
  const before = readFileSync(all[0]?.disk ?? "");
  const missing = { disk: "/missing.vhd", socket: `${all[0]?.socket}2` };
  const { status, stdout, stderr } = await outcomeOf(tapdisk, serveArguments([...all, missing]));
  expect({ status, stdout }).toEqual({ status: 1, stdout: "" });
  expect(stderr).toMatch(/^tapdisk: .*\/missing\.vhd/);
  expectSame(readFileSync(all[0]?.disk ?? ""), before, "file");
});

test("a disk twice is one too many", async () => {
  const [place] = await places(1, 32);
  const twice = place === undefined ? [] : [place, { ...place, socket: `${place.socket}2` }];
  const { status, stderr } = await outcomeOf(tapdisk, serveArguments(twice));
  expect(status).toBe(1);
  expect(stderr).toMatch(/in use/);
});

test("a disk more takes 16 MiB of memory at most", async () => {
  const all = await places(17, 10 * 1024);
  const memory: number[] = [];
  for (const some of [all.slice(0, 1), all]) {
    const running = await serveAll(some);
    // Each has answered somebody.
    await Promise.all(some.map((place) => run("nbdinfo", ["--size", uri(place)])));
    memory.push(ownBytes(running.pid));
    await stop(running);
  }
  const [one = 0, many = 0] = memory;
  expect((many - one) / 16 / MIB).toBeLessThan(16);
});
