/**
 * Compares `vhd-check` and `vhd-coalesce` with other programs that do the same, or move the same bytes, on this machine.
 * Contenders take turns; times end when the result is durable, for all of them. The report is `RESULTS-TOOLS.md` beside this.
 */

import { existsSync } from "node:fs";
import { copyFile, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { warm } from "./images.ts";
import { describeCommit, describeMachine } from "./machine.ts";
import { digits, table } from "./markdown.ts";
import { Program, run } from "./processes.ts";
import { ratios, spread } from "./statistics.ts";

const DISK_MIB = 4096;
/** Blocks of the image that is checked: the original's time grows with their square. */
const CHECKED_BLOCKS = 50_000;
const ROUNDS = Number(process.env.ROUNDS ?? 3);

const root = fileURLToPath(new URL("../..", import.meta.url));
const vhdLibJob = fileURLToPath(new URL("vhd-lib-job.ts", import.meta.url));
const ours = (name: string) => join(root, "build/bin", name);

/** A program that does the case's work once; what has to be made ready before it doesn't count. */
interface Contender {
  readonly name: string;
  readonly work: () => Promise<unknown>;
}

interface Case {
  readonly name: string;
  readonly what: string;
  readonly prepare: () => Promise<unknown>;
  readonly contenders: readonly Contender[];
}

/** Seconds of each round by contender; none where it failed. */
type Times = Map<string, (number | undefined)[]>;

async function measure(one: Case): Promise<Times> {
  const times: Times = new Map(one.contenders.map(({ name }) => [name, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const { name, work } of one.contenders) {
      await one.prepare();
      await run({ program: "sync", args: [] });
      const start = performance.now();
      const seconds = await work().then(
        () => (performance.now() - start) / 1000,
        (error: unknown) => {
          process.stderr.write(`  ${name} failed: ${error instanceof Error ? error.message : error}\n`);
          return undefined;
        },
      );
      times.get(name)?.push(seconds);
      process.stderr.write(`  ${one.name}: ${name} ${seconds === undefined ? "–" : digits(seconds)} s\n`);
    }
  }
  return times;
}

function report(one: Case, times: Times): string {
  const first = times.get(one.contenders[0]?.name ?? "") ?? [];
  const rows = [...times].map(([name, seconds]) => {
    const all = spread(seconds.filter((value) => value !== undefined));
    const ratio = ratios(seconds, first);
    return [
      name,
      all === undefined ? "failed" : `${digits(all.minimum)} – ${digits(all.median)} – ${digits(all.maximum)}`,
      ratio === undefined ? "–" : digits(ratio.median),
    ];
  });
  return `## ${one.name}\n\n${one.what}\n\n${table(["", "seconds: least – median – most", "of ours"], rows)}\n`;
}

const folder = await mkdtemp(join(process.env.BENCH_DIR ?? tmpdir(), "bench-tools-"));
const at = (name: string) => join(folder, name);
const blktap = process.env.BLKTAP;
const original = (...args: string[]) =>
  run({ program: join(blktap ?? "", "bin/vhd-util"), args, env: { LD_LIBRARY_PATH: join(blktap ?? "", "lib") } });
const durable = (path: string) => run({ program: "sync", args: ["-d", path] });
const vhdLib = (...args: string[]) => run({ program: process.execPath, args: [vhdLibJob, ...args] });

/** A base and a child of it, each with every other block written. */
async function makeChain(): Promise<void> {
  const size = ["-s", `${DISK_MIB}`];
  await run({ program: ours("vhd-util"), args: ["create", "-n", at("base.vhd"), ...size] });
  await writeEveryOtherBlock(at("base.vhd"), 0);
  await run({ program: ours("vhd-util"), args: ["snapshot", "-n", at("child.vhd"), "-p", at("base.vhd"), "-e"] });
  await writeEveryOtherBlock(at("child.vhd"), 1);
  await rename(at("base.vhd"), at("base.kept"));
}

async function writeEveryOtherBlock(path: string, first: number): Promise<void> {
  const socket = at("nbd");
  const server = new Program({ program: ours("tapdisk"), args: ["serve", `vhd:${path}`, "--nbd", `unix:${socket}`] });
  while (server.alive && !server.stdout.includes("nbd+unix")) await new Promise((resolve) => setTimeout(resolve, 20));
  const uri = `--uri=nbd+unix:///?socket=${socket}`;
  const where = [`--offset=${first * 2}m`, `--size=${DISK_MIB - first * 2}m`, `--io_size=${DISK_MIB / 2}m`];
  const how = ["--rw=write:2m", "--bs=2m", "--iodepth=4", "--refill_buffers", "--output=/dev/null"];
  await run({ program: "fio", args: ["--name=write", "--ioengine=nbd", uri, ...where, ...how] });
  await server.stop("SIGTERM");
}

async function makeFull(): Promise<void> {
  await run({ program: ours("vhd-util"), args: ["create", "-n", at("full.vhd"), "-s", `${CHECKED_BLOCKS * 2}`] });
  await run({ program: ours("vhd-util"), args: ["fill", "-b", "-n", at("full.vhd")] });
}

const coalesce: Case = {
  name: `Merging a half-written child of ${DISK_MIB / 1024} GiB into its parent`,
  what:
    "Every other block of the child is written, the others of its parent. `cp` copies the child, `qemu-img convert` reads it " +
    "as a disk of its own: they only move the same bytes. Everybody's result is durable in the end (`sync -d` where a program " +
    "doesn't do that itself); the child is in the page cache.",
  prepare: async () => {
    await rm(at("out"), { force: true });
    await rm(at("base.vhd"), { force: true });
    await copyFile(at("base.kept"), at("base.vhd"));
    await warm(at("child.vhd"));
  },
  contenders: [
    { name: "vhd-coalesce", work: () => run({ program: ours("vhd-coalesce"), args: [at("child.vhd")] }) },
    {
      name: "cp of the child",
      work: async () => {
        await run({ program: "cp", args: [at("child.vhd"), at("out")] });
        await durable(at("out"));
      },
    },
    {
      name: "qemu-img convert",
      work: async () => {
        await run({ program: "qemu-img", args: ["convert", "-f", "vpc", "-O", "raw", at("child.vhd"), at("out")] });
        await durable(at("out"));
      },
    },
    {
      name: "vhd-lib merge",
      work: async () => {
        await vhdLib("merge", at("base.vhd"), at("child.vhd"));
        await durable(at("base.vhd"));
      },
    },
    ...(blktap === undefined
      ? []
      : [
          {
            name: "original vhd-util coalesce",
            work: async () => {
              await original("coalesce", "-n", at("child.vhd"));
              await durable(at("base.vhd"));
            },
          },
        ]),
  ],
};

const check: Case = {
  name: `Checking an image of ${CHECKED_BLOCKS} allocated blocks`,
  what:
    "A sparse file with all bitmaps set. The original compares each block with each other one and reads no bitmap; `vhd-lib` only " +
    "looks at footers and header.",
  prepare: async () => {},
  contenders: [
    { name: "vhd-check", work: () => run({ program: ours("vhd-check"), args: [at("full.vhd")] }) },
    { name: "vhd-check --quick", work: () => run({ program: ours("vhd-check"), args: ["--quick", at("full.vhd")] }) },
    { name: "vhd-lib check", work: () => vhdLib("check", at("full.vhd")) },
    ...(blktap === undefined
      ? []
      : [{ name: "original vhd-util check", work: () => original("check", "-n", at("full.vhd")) }]),
  ],
};

try {
  if (blktap !== undefined && !existsSync(join(blktap, "bin/vhd-util"))) {
    throw new Error(`BLKTAP: there is no bin/vhd-util in ${blktap}`);
  }
  process.stderr.write("making images\n");
  await makeChain();
  await makeFull();
  const machine = await describeMachine(folder);
  const parts = [
    "# The tools beside others",
    "",
    `${new Date().toISOString().slice(0, 16)}, commit ${await describeCommit()}, ${ROUNDS} alternating rounds. ${machine.cores} × ${machine.cpu}, ` +
      `${Math.round(machine.memoryBytes / 2 ** 30)} GiB, Linux ${machine.kernel}, ${machine.fileSystem}; Node ${machine.versions.Node}, ` +
      `qemu ${machine.versions.qemu}. Written by \`make bench-tools\`; ratios are medians over the rounds.`,
    "",
  ];
  for (const one of [coalesce, check]) {
    parts.push(report(one, await measure(one)));
  }
  await writeFile(join(root, "test/bench/RESULTS-TOOLS.md"), parts.join("\n"));
} finally {
  await rm(folder, { recursive: true, force: true });
}
