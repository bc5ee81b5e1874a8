// The original, blktap 4.0.8: chains of vhd-util's that the original tapdisk wrote are read and written, and it reads the
// result and finds nothing wrong. Part of `make interop BLKTAP=<prefix>` only.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { JobDescription } from "../ts/engine/engine.ts";
import { loadEngineModule } from "../ts/engine/load-node.ts";
import { JobRunner } from "../ts/host/job-runner.ts";
import { portModule } from "../ts/tapdisk/port.ts";
import { check, interrupted, readWithOriginal, vhdUtil, writeWithOriginal } from "./support/blktap.ts";
import { partialBlocks, scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, SECTOR, sha256 } from "./support/data.ts";
import { applyExtents, contentWith, type Extent, readThrough, writeThrough, writeWithQemu } from "./support/images.ts";
import { loopDevice } from "./support/loop.ts";
import { command, NbdClient } from "./support/nbd-client.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends, refused, serve, whileServed } from "./support/tapdisk.ts";

const SIZE = 20 * MIB;
const BLOCK = 2 * MIB;

const sums = (paths: readonly string[]) => paths.map((path) => sha256(readFileSync(path)));

/** Pieces of blocks, and two whole ones with something on each side. */
function extentsFor(seed: number): Extent[] {
  const first = (seed % 3) * 3 * BLOCK;
  const whole = { offset: first + BLOCK - SECTOR, data: pattern(2 * BLOCK + 2 * SECTOR, seed) };
  return [
    ...scattered(SIZE, 7, seed).filter(
      ({ offset, data }) => offset + data.length <= whole.offset || offset >= whole.offset + whole.data.length,
    ),
    whole,
  ];
}

/** How many blocks the batmap calls full. */
function fullBlocks(path: string): number {
  const file = readFileSync(path);
  const at = Math.ceil((1536 + 4 * file.readUInt32BE(512 + 28)) / SECTOR) * SECTOR;
  expect(file.toString("latin1", at, at + 8)).toBe("tdbatmap");
  const map = Number(file.readBigUInt64BE(at + 8));
  const blocks = Math.ceil(Number(file.readBigUInt64BE(48)) / BLOCK);
  return Array.from({ length: blocks }, (_, block) => block).filter(
    (block) => ((file[map + (block >> 3)] ?? 0) & (0x80 >> (block & 7))) !== 0,
  ).length;
}

interface Chain {
  readonly paths: string[];
  readonly leaf: string;
  readonly content: Buffer;
}

/** A chain in which every image was written by the original. */
async function makeChain(levels: number, seed: number, create: string[] = []): Promise<Chain> {
  const folder = temporaryDirectory();
  const content = contentWith(SIZE, []);
  const paths: string[] = [];
  for (let level = 0; level < levels; level++) {
    const path = join(folder, `level${level}.vhd`);
    const parent = paths.at(-1);
    if (parent === undefined) await vhdUtil("create", "-n", path, "-s", `${SIZE / MIB}`, ...create);
    else await vhdUtil("snapshot", "-n", path, "-p", parent);
    const extents = extentsFor(seed + level);
    await writeWithOriginal(path, extents);
    applyExtents(content, extents);
    paths.push(path);
  }
  return { paths, leaf: paths.at(-1) ?? "", content };
}

async function expectValid(path: string, options = ["-b"]): Promise<void> {
  expect(await check(path, options)).toEqual({
    status: 0,
    stdout: expect.stringContaining(`${path} is valid\n`),
    stderr: "",
  });
}

describe("images that the original wrote", () => {
  test.each([1, 2, 3])("read as it reads them, and are left alone: %i levels", async (levels) => {
    const { paths, leaf, content } = await makeChain(levels, 1);
    for (const path of paths) {
      expect(partialBlocks(path)).toBeGreaterThan(0);
      expect(fullBlocks(path)).toBe(2);
    }
    const before = sums(paths);
    expectSame(await whileServed(`vhd:${leaf}`, ["--read-only"], readThrough), content, "read-only");
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "served for writing");
    expect(sums(paths)).toEqual(before);
    expectSame(await readWithOriginal(leaf), content, "by the original");
  });

  test.each(backends)("take writes that it reads, one after the other, with --io %s", async (io) => {
    const { paths, leaf, content } = await makeChain(3, 2);
    const before = sums(paths.slice(0, -1));
    for (const seed of [7, 8]) {
      const ours = extentsFor(seed);
      await whileServed(`vhd:${leaf}`, ["--io", io], (tapdisk) => writeThrough(tapdisk, ours));
      applyExtents(content, ours);
      await expectValid(leaf);
      expectSame(await readWithOriginal(leaf), content, "ours, by the original");
      const theirs = extentsFor(seed + 2);
      await writeWithOriginal(leaf, theirs);
      applyExtents(content, theirs);
      expectSame(await whileServed(`vhd:${leaf}`, ["--io", io], readThrough), content, "theirs, by ours");
    }
    expect(sums(paths.slice(0, -1))).toEqual(before);
  });

  test("with room to grow in their tables stay valid", async () => {
    const { leaf, content } = await makeChain(1, 3, ["-S", "40000"]);
    const extents = extentsFor(11);
    await whileServed(`vhd:${leaf}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    applyExtents(content, extents);
    await expectValid(leaf);
    expectSame(await readWithOriginal(leaf), content, "by the original");
  });

  test("stay valid when blocks that their batmap calls full are discarded, and written again", async () => {
    const { leaf, content } = await makeChain(1, 0);
    expect(fullBlocks(leaf)).toBe(2);
    const zeros = { offset: BLOCK, data: Buffer.alloc(2 * BLOCK) };
    await whileServed(`vhd:${leaf}`, [], async ({ socket }) => {
      const client = await NbdClient.connect(socket);
      expect((await client.request(command.trim, zeros.offset, zeros.data.length)).error).toBe(0);
      expect((await client.flush()).error).toBe(0);
      await client.close();
    });
    applyExtents(content, [zeros]);
    await expectValid(leaf);
    expect(fullBlocks(leaf)).toBe(0);
    expectSame(await readWithOriginal(leaf), content, "by the original");
    const piece = { offset: BLOCK + 5 * SECTOR, data: pattern(SECTOR, 5) };
    await writeWithOriginal(leaf, [piece]);
    applyExtents(content, [piece]);
    await expectValid(leaf);
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "by ours");
  });

  test.each([1, 2])("get their batmaps back that vhd-util set destroyed: %i levels", async (levels) => {
    const { leaf, content } = await makeChain(levels, 0);
    await vhdUtil("set", "-n", leaf, "-f", "marker", "-v", "5");
    expect((await check(leaf, [])).status).not.toBe(0);
    const tapdisk = await serve(`vhd:${leaf}`);
    expectSame(await readThrough(tapdisk), content, "by ours");
    await tapdisk.stop("tapdisk: warning: the batmap is wrong and not used: its checksum is not that of its map\n");
    await expectValid(leaf);
    expect(await vhdUtil("query", "-n", leaf, "-m")).toContain("5");
    const extents = extentsFor(3);
    await writeWithOriginal(leaf, extents);
    applyExtents(content, extents);
    expectSame(await readWithOriginal(leaf), content, "by the original");
  });

  test("are read and never written when qemu has put a block on their batmap", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await vhdUtil("create", "-n", path, "-s", `${SIZE / MIB}`);
    const extent = { offset: 0, data: pattern(MIB, 1) };
    await writeWithQemu(path, extent.offset, extent.data);
    const what = "block 0 lies on the batmap's header";
    expect((await refused(`vhd:${path}`)).stderr).toContain(`${path}: BAT: ${what}`);
    const tapdisk = await serve(`vhd:${path}`, "--read-only");
    expectSame(await readThrough(tapdisk), contentWith(SIZE, [extent]), "through tapdisk");
    await tapdisk.stop(`tapdisk: warning: ${what}\ntapdisk: warning: block 0 lies on the batmap\n`);
  });

  test("that are hidden are served, and stay hidden", async () => {
    const { paths, leaf, content } = await makeChain(2, 4);
    for (const path of paths) await vhdUtil("set", "-n", path, "-f", "hidden", "-v", "1");
    const extents = extentsFor(12);
    await whileServed(`vhd:${leaf}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    applyExtents(content, extents);
    await expectValid(leaf);
    for (const path of paths) expect(await vhdUtil("query", "-n", path, "-f")).toContain("hidden: 1");
    expectSame(await readWithOriginal(leaf), content, "by the original");
  });

  test("that are encrypted are refused, and so are their children", async () => {
    const folder = temporaryDirectory();
    const [disk, child] = [join(folder, "disk.vhd"), join(folder, "child.vhd")];
    await vhdUtil("create", "-n", disk, "-s", "20");
    await vhdUtil("key", "-s", "-n", disk, "-H", "ab".repeat(32));
    await vhdUtil("snapshot", "-n", child, "-p", disk, "-e");
    const before = sums([disk, child]);
    for (const path of [disk, child]) {
      const { stderr } = await refused(`vhd:${path}`);
      expect(stderr).toContain(`${path}: batmap: the disk is encrypted, which is not supported`);
    }
    expect(sums([disk, child])).toEqual(before);
  });
});

test("an image on a block device, in both directions", async ({ skip }) => {
  const path = join(temporaryDirectory(), "device");
  writeFileSync(path, Buffer.alloc(SIZE + 4 * MIB, 0xc7));
  const device = (await loopDevice(path)) ?? skip("loop devices are not permitted here");
  await vhdUtil("create", "-n", device, "-s", `${SIZE / MIB}`);
  const content = contentWith(SIZE, []);
  for (const seed of [1, 2]) {
    const ours = extentsFor(seed);
    await whileServed(`vhd:${device}`, [], (tapdisk) => writeThrough(tapdisk, ours));
    applyExtents(content, ours);
    await expectValid(device, []);
    expectSame(await readWithOriginal(device), content, "ours, by the original");
    const theirs = extentsFor(seed + 2);
    await writeWithOriginal(device, theirs);
    applyExtents(content, theirs);
    expectSame(await whileServed(`vhd:${device}`, [], readThrough), content, "theirs, by ours");
  }
});

describe("children of", () => {
  test.each([
    ["a raw file", SIZE],
    ["a raw file of odd size", 7 * MIB + 5 * SECTOR],
  ])("%s read and written", async (_, size) => {
    const folder = temporaryDirectory();
    const [parent, leaf] = [join(folder, "parent.raw"), join(folder, "leaf.vhd")];
    const data = pattern(size, 6);
    writeFileSync(parent, data);
    await vhdUtil("snapshot", "-n", leaf, "-p", parent, "-m");
    const content = Buffer.alloc(Number(readFileSync(leaf).readBigUInt64BE(48)));
    data.copy(content);
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "new");
    const rounds = [1, 2].map((seed) => scattered(content.length, 5, seed));
    const [theirs = [], ours = []] = rounds;
    await writeWithOriginal(leaf, theirs);
    applyExtents(content, theirs);
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "by ours");
    await whileServed(`vhd:${leaf}`, [], (tapdisk) => writeThrough(tapdisk, ours));
    applyExtents(content, ours);
    expectSame(await readWithOriginal(leaf), content, "by the original");
    await expectValid(leaf);
    expect(sha256(readFileSync(parent))).toBe(sha256(data));
  });

  test("a fixed image read and written", async () => {
    const { paths, leaf, content } = await makeChain(2, 5, ["-r"]);
    const before = sums(paths.slice(0, 1));
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "by ours");
    const extents = extentsFor(13);
    await whileServed(`vhd:${leaf}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    applyExtents(content, extents);
    expectSame(await readWithOriginal(leaf), content, "by the original");
    await expectValid(leaf);
    expect(sums(paths.slice(0, 1))).toEqual(before);
  });
});

describe("after kill -9", () => {
  test.each(["without a parent", "with a parent"])("%s nothing is worse than a primary footer", async (what) => {
    const folder = temporaryDirectory();
    const [base, path] = [join(folder, "base.vhd"), join(folder, "disk.vhd")];
    const size = 100 * MIB;
    const content = contentWith(size, []);
    if (what === "without a parent") {
      await vhdUtil("create", "-n", path, "-s", `${size / MIB}`);
    } else {
      await vhdUtil("create", "-n", base, "-s", `${size / MIB}`);
      const extents = scattered(size, 9, 40);
      await writeWithOriginal(base, extents);
      applyExtents(content, extents);
      await vhdUtil("snapshot", "-n", path, "-p", base);
    }
    for (let round = 0; round < 4; round++) {
      const tapdisk = await serve(`vhd:${path}`);
      const client = await NbdClient.connect(tapdisk.socket);
      // These are flushed; of the others, in flight when it is killed, nothing is promised.
      const flushed = scattered(size, 5, 50 + round);
      await Promise.all(flushed.map(({ offset, data }) => client.write(offset, data)));
      expect((await client.flush()).error).toBe(0);
      const late = scattered(size, 90, 70 + round);
      const pending = Promise.allSettled(late.map(({ offset, data }) => client.write(offset, data)));
      await Promise.race([pending, new Promise((resolve) => setTimeout(resolve, 5 * round))]);
      await tapdisk.kill();
      await pending;

      const { status, stdout } = await check(path, []);
      const [verdict = ""] = stdout.split("\n");
      if (verdict.startsWith("primary footer invalid")) expect((await check(path, ["-i"])).status).toBe(0);
      else expect({ status, verdict }).toEqual({ status: 0, verdict: `${path} is valid` });
      // Data that were written ahead of their bits are all that its look at the bitmaps finds.
      const { stdout: thorough } = await check(path, ["-b", "-i"]);
      const complaint =
        /^(?:sector 0x\w+ of block 0x\w+ has data where bitmap is clear\n)*\S+ (?:is valid|appears invalid)/;
      expect(thorough).toMatch(complaint);

      const read = await readWithOriginal(path);
      applyExtents(content, flushed);
      for (const { offset, data } of late) {
        for (let at = 0; at < data.length; at += SECTOR) {
          const sector = data.subarray(at, at + SECTOR);
          if (read.subarray(offset + at, offset + at + SECTOR).equals(sector)) content.set(sector, offset + at);
        }
      }
      expectSame(read, content, `by the original, round ${round}`);
      expectSame(await whileServed(`vhd:${path}`, [], readThrough), content, `by ours, round ${round}`);
      expect((await check(path, [])).stdout).toContain(`${path} is valid\n`);
    }
  });
});

describe("images that our jobs make", () => {
  const uuids = Array.from({ length: 9 }, (_, index) => `6f7a1d0c-5a3b-4f57-9b05-f5a1b0a3c9d${index}`);
  const now = 1_790_000_000;
  const vhd = "vhd";

  /** Runs jobs one after another. */
  async function jobs(...descriptions: JobDescription[]): Promise<void> {
    const runner = new JobRunner(loadEngineModule(), portModule().Port);
    try {
      for (const description of descriptions) await runner.run(description);
    } finally {
      runner.close();
    }
  }

  test("are right for it: created, with children, cloned, resized, filled, with other parents", async () => {
    const folder = temporaryDirectory();
    const [base, child, copy, flat, other] = ["base", "child", "copy", "flat", "other"].map((name) =>
      join(folder, `${name}.vhd`),
    ) as [string, string, string, string, string];
    await jobs({ job: "create", path: base, type: "dynamic", size: SIZE, uuid: uuids[0], now });
    await expectValid(base);
    const content = contentWith(SIZE, []);
    const first = extentsFor(3);
    await writeWithOriginal(base, first);
    applyExtents(content, first);
    await jobs({ job: "snapshot", path: child, parent: { path: base, driver: vhd }, uuid: uuids[1], now });
    await expectValid(child);
    expect(await vhdUtil("query", "-n", child, "-p")).toContain(base);
    const second = extentsFor(4);
    await writeWithOriginal(child, second);
    applyExtents(content, second);
    await jobs(
      { job: "clone", path: child, target: copy, uuid: uuids[2] },
      { job: "clone", path: base, target: other, uuid: uuids[3] },
      { job: "convert", path: child, driver: vhd, target: flat, format: "dynamic", uuid: uuids[4], now },
      { job: "modify", path: copy, parent: { path: other, driver: vhd } },
      { job: "set", path: copy, hidden: 1, marker: 7 },
    );
    for (const path of [copy, other, flat]) await expectValid(path);
    expect(await vhdUtil("query", "-n", copy, "-p", "-f", "-m")).toBe(`${other}\nhidden: 1\nmarker: 7\n`);
    for (const path of [copy, flat]) expectSame(await readWithOriginal(path), content, path);

    // Beyond the room of the BAT, and back.
    const large = 400 * MIB;
    await jobs(
      { job: "resize", path: child, size: large },
      { job: "resize", path: flat, size: large },
      { job: "repair", path: copy },
    );
    for (const path of [child, flat]) {
      await expectValid(path);
      expect(await vhdUtil("query", "-n", path, "-v", "-S")).toBe("400\n400\n");
      const grown = Buffer.concat([content, Buffer.alloc(large - SIZE)]);
      expectSame(await readWithOriginal(path), grown, path);
    }
    await jobs(
      { job: "resize", path: child, size: 6 * MIB },
      { job: "fill", path: child, bitmapsOnly: true },
      { job: "modify", path: flat, dropData: true },
    );
    for (const path of [child, flat]) await expectValid(path);
    expectSame(await readWithOriginal(child), content.subarray(0, 6 * MIB), "shrunk");
    expect(await vhdUtil("query", "-n", flat, "-a")).toBe("0\n");
    expect(await vhdUtil("query", "-n", child, "-a")).toBe("3\n");
  });

  test.each(["BEGIN", "DATA_MOVED", "METADATA_MOVED", "END"])(
    "are as before when its resize is interrupted at %s and reverted",
    async (point) => {
      const { leaf, content } = await makeChain(1, 0);
      const journal = `${leaf}.journal`;
      const outcome = await interrupted(`RESIZE_${point}`, ["resize", "-n", leaf, "-s", "20000", "-j", journal]);
      expect(outcome.status).not.toBe(0);
      expect(existsSync(journal)).toBe(true);
      await jobs({ job: "revert", path: leaf, journal });
      expect(existsSync(journal)).toBe(false);
      await expectValid(leaf);
      expectSame(await readWithOriginal(leaf), content, "reverted");
    },
  );
});
