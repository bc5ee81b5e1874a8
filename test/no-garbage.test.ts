// The hot path of the data plane makes no garbage: V8 itself tells of every collection.

import { join } from "node:path";
import { expect, test } from "vitest";
import { createWithQemu } from "./support/images.ts";
import { RunningProgram, run, temporaryDirectory, until } from "./support/run.ts";
import { ringClient } from "./support/tapdisk.ts";

const TAPDISK = join(import.meta.dirname, "../build/lib/tapdisk.cjs");

const REQUESTS = 1_000_000;
/** Until everything hot is compiled. */
const WARM_UP_REQUESTS = 200_000;

/** What a loaded machine needs for all this. */
const SECONDS = 400;

interface Collection {
  /** `Scavenge` is a minor one, `Mark-Compact` a major one. */
  readonly kind: string;
  /** MB that are in use afterwards. */
  readonly used: number;
}

/** The collections that V8 has told of, by isolate: the main thread's and the data plane's. */
function collections(output: string): Map<string, Collection[]> {
  const lines = output.matchAll(/^\[\d+:(0x\w+)\].*?: (Scavenge|Mark-Compact).*? -> ([\d.]+) /gm);
  const all = new Map<string, Collection[]>();
  for (const [, isolate = "", kind = "", used] of lines) {
    all.set(isolate, [...(all.get(isolate) ?? []), { kind, used: Number(used) }]);
  }
  return all;
}

test("a million requests don't need the garbage collector", { timeout: SECONDS * 1000 }, async () => {
  const directory = temporaryDirectory();
  const disk = join(directory, "disk.vhd");
  const socket = join(directory, "ring");
  await createWithQemu(disk, 64, { subformat: "dynamic", forceSize: true });
  const serve = [TAPDISK, "serve", `vhd:${disk}`, "--ring", `unix:${socket}`];
  const tapdisk = new RunningProgram(process.execPath, ["--trace-gc", ...serve]);
  await until("it serves", () => /^ring\+unix:/m.test(tapdisk.stdout), 20);

  const requests = async (wanted: number) => {
    for (let done = 0; done < wanted; ) {
      for (const rw of ["randwrite", "randread"]) {
        const args = ["bench", "--socket", socket, "--rw", rw, "--bs", "8192", "--seconds", "1"];
        done += Number(JSON.parse(await run(ringClient, args)).requests);
      }
    }
  };
  await requests(WARM_UP_REQUESTS);
  const before = collections(tapdisk.stdout);
  expect(before.size, "V8 tells of collections of both threads").toBe(2);
  await requests(REQUESTS);

  // Clients come and go meanwhile, which costs a little. A minor collection comes after some MB: less than 20 bytes for each
  // request, which is less than the smallest object and its header.
  for (const [isolate, earlier] of before) {
    const during = collections(tapdisk.stdout).get(isolate)?.slice(earlier.length) ?? [];
    expect(during.filter(({ kind }) => kind !== "Scavenge")).toEqual([]);
    expect(during.length).toBeLessThanOrEqual(3);
    const [last] = during.slice(-1);
    expect(last?.used ?? 0).toBeLessThanOrEqual((earlier.at(-1)?.used ?? 0) + 2);
  }

  tapdisk.signal("SIGTERM");
  expect((await tapdisk.outcome(20)).status).toBe(0);
});
