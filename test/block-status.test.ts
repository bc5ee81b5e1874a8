// What is data and what is a hole, as other people's clients see it; and zeros that are fast or refused.

import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { partialBlocks, scattered, sectorsInChain } from "./support/chains.ts";
import { expectSame, MIB, pattern, SECTOR } from "./support/data.ts";
import { createWithFatTools } from "./support/fattools.ts";
import { applyExtents, contentWith, createWithQemu, readThrough, readWithQemu } from "./support/images.ts";
import { command, commandFlag, NbdClient, nbdError, type StatusExtent } from "./support/nbd-client.ts";
import { run, temporaryDirectory } from "./support/run.ts";
import { backends, serve, type Tapdisk, whileServed } from "./support/tapdisk.ts";

const BLOCK = 2 * MIB;
const HOLE = 3;

/** What a file takes of its file system. */
const spaceOf = (path: string) => statSync(path).blocks * 512;

interface Part {
  readonly start: number;
  readonly length: number;
  readonly data: boolean;
}

/** Neighbouring sectors that are alike as one part. */
function parts(sectors: readonly boolean[]): Part[] {
  const found: Part[] = [];
  for (const [sector, data] of sectors.entries()) {
    const last = found.at(-1);
    if (last?.data === data) found[found.length - 1] = { ...last, length: last.length + SECTOR };
    else found.push({ start: sector * SECTOR, length: SECTOR, data });
  }
  return found;
}

const infoSchema = z.array(z.object({ offset: z.int(), length: z.int(), type: z.int(), description: z.string() }));
const mapSchema = z.array(z.object({ start: z.int(), length: z.int(), data: z.boolean(), zero: z.boolean() }));

/** What nbdinfo shows; the two clients agree. */
async function mapOf({ uri }: Tapdisk): Promise<Part[]> {
  const info = infoSchema.parse(JSON.parse(await run("nbdinfo", ["--map", "--json", uri])));
  const map = mapSchema.parse(JSON.parse(await run("qemu-img", ["map", "--output=json", "-f", "raw", uri])));
  for (const { type } of info) expect([0, HOLE]).toContain(type);
  for (const { data, zero } of map) expect(zero).toBe(!data);
  const shown = info.map(({ offset, length, type }) => ({ start: offset, length, data: type === 0 }));
  expect(map.map(({ start, length, data }) => ({ start, length, data }))).toEqual(shown);
  return shown;
}

async function status(client: NbdClient, offset: number, length: number, flags = 0): Promise<readonly StatusExtent[]> {
  const { error, extents } = await client.request(command.blockStatus, offset, length, flags);
  expect(error).toBe(0);
  return extents;
}

/** A chain of FATtools' with partial bitmaps at every level; its images, base first. */
async function makeChain(size: number, seed: number): Promise<{ paths: string[]; leaf: string; content: Buffer }> {
  const folder = temporaryDirectory();
  const content = contentWith(size, []);
  const images = [0, 1, 2].map((level) => {
    const path = join(folder, `level ${level}.vhd`);
    const extents = scattered(size, 5, seed * 10 + level);
    applyExtents(content, extents);
    return { path, extents };
  });
  await createWithFatTools(images, { size, blockSize: BLOCK });
  const paths = images.map(({ path }) => path);
  for (const path of paths) expect(partialBlocks(path)).toBeGreaterThan(1);
  return { paths, leaf: paths.at(-1) ?? "", content };
}

describe.each(backends)("with --io %s", (io) => {
  test("the map of a chain has what any of its images has", async () => {
    const size = 15 * MIB + 5 * SECTOR;
    const { paths, leaf, content } = await makeChain(size, 1);
    const sectors = sectorsInChain(paths, size, BLOCK);
    const copy = join(temporaryDirectory(), "copy");
    await whileServed(`vhd:${leaf}`, ["--io", io, "--read-only", "--bitmap-cache", "1"], async (tapdisk) => {
      expect(await mapOf(tapdisk)).toEqual(parts(sectors));
      // Without this option nbdcopy looks for zeros itself.
      await run("nbdcopy", ["--sparse=0", tapdisk.uri, copy]);
    });
    expectSame(readFileSync(copy), content, "the copy");
  });

  test("a dynamic disk: blocks appear as they are written and go as they are trimmed", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await createWithQemu(path, 20, { subformat: "dynamic", forceSize: true });
    const expected = (...blocks: number[]) =>
      parts(Array.from({ length: (20 * MIB) / SECTOR }, (_, sector) => blocks.includes(Math.floor(sector / 4096))));
    const tapdisk = await serve(`vhd:${path}`, "--io", io);
    expect(await mapOf(tapdisk)).toEqual(expected());
    const client = await NbdClient.connect(tapdisk.socket, { blockStatus: true });
    expect((await client.write(BLOCK + SECTOR, pattern(SECTOR, 1))).error).toBe(0);
    expect((await client.write(3 * BLOCK, pattern(2 * BLOCK, 2))).error).toBe(0);
    expect(await mapOf(tapdisk)).toEqual(expected(1, 3, 4));
    expect(await status(client, BLOCK, 4 * BLOCK)).toEqual([
      { length: BLOCK, flags: 0 },
      { length: BLOCK, flags: HOLE },
      { length: 2 * BLOCK, flags: 0 },
    ]);
    expect(await status(client, 3 * SECTOR, 4 * BLOCK, commandFlag.reqOne)).toEqual([
      { length: BLOCK - 3 * SECTOR, flags: HOLE },
    ]);
    expect((await client.request(command.trim, 3 * BLOCK, BLOCK + MIB)).error).toBe(0);
    expect((await client.request(command.writeZeroes, BLOCK, BLOCK, commandFlag.fua)).error).toBe(0);
    expect(await mapOf(tapdisk)).toEqual(expected(4));
    await client.close();
    await tapdisk.stop();
    await whileServed(`vhd:${path}`, ["--io", io], async (again) => expect(await mapOf(again)).toEqual(expected(4)));
  });

  test.each(["fixed", "raw"] as const)("a %s disk shows the holes of its file", async (kind) => {
    const path = join(temporaryDirectory(), "disk");
    if (kind === "fixed") await createWithQemu(path, 20, { subformat: kind, forceSize: true });
    else {
      writeFileSync(path, "");
      truncateSync(path, 20 * MIB);
    }
    const data = (from: number, to: number) =>
      parts(Array.from({ length: (20 * MIB) / SECTOR }, (_, at) => at * SECTOR >= from && at * SECTOR < to));
    await whileServed(`${kind === "raw" ? "aio" : "vhd"}:${path}`, ["--io", io], async (tapdisk) => {
      const client = await NbdClient.connect(tapdisk.socket);
      expect((await client.request(command.trim, 0, 20 * MIB)).error).toBe(0);
      expect(await mapOf(tapdisk)).toEqual(data(0, 0));
      expect((await client.write(5 * MIB, pattern(3 * MIB, 3))).error).toBe(0);
      expect(await mapOf(tapdisk)).toEqual(data(5 * MIB, 8 * MIB));
      expect((await client.request(command.trim, 5 * MIB, MIB)).error).toBe(0);
      expect(await mapOf(tapdisk)).toEqual(data(6 * MIB, 8 * MIB));
      await client.close();
    });
  });

  test("reads and block status share the wait for bitmaps", async () => {
    const size = 24 * MIB;
    const { paths, leaf, content } = await makeChain(size, 2);
    const sectors = sectorsInChain(paths, size, BLOCK);
    const tapdisk = await serve(`vhd:${leaf}`, "--io", io, "--read-only");
    const client = await NbdClient.connect(tapdisk.socket, { blockStatus: true });
    // No bitmap is in memory: the original aborts at the first of these pairs.
    const pairs = Array.from({ length: 24 }, (_, index) => {
      const offset = ((index * 7) % 24) * MIB;
      return { offset, status: status(client, offset, MIB), read: client.read(offset, MIB) };
    });
    for (const { offset, status, read } of pairs) {
      expectSame((await read).data, content.subarray(offset, offset + MIB), `at ${offset}`);
      const here = parts(sectors.slice(offset / SECTOR, (offset + MIB) / SECTOR));
      expect(await status).toEqual(here.map(({ length, data }) => ({ length, flags: data ? 0 : HOLE })));
    }
    await client.close();
    await tapdisk.stop();
  });
});

test("a copy of a sparse disk is sparse, and made of what is there", async () => {
  const folder = temporaryDirectory();
  const [path, copy, back] = [join(folder, "disk.vhd"), join(folder, "copy"), join(folder, "back.vhd")];
  // 128 GiB: more than could be read in the time of the test.
  const size = 1 << 17;
  await createWithQemu(path, size, { subformat: "dynamic", forceSize: true });
  await createWithQemu(back, size, { subformat: "dynamic", forceSize: true });
  const places = [0, 100_000 * MIB + 7 * SECTOR, (size - 1) * MIB];
  await whileServed(`vhd:${path}`, [], async (tapdisk) => {
    const client = await NbdClient.connect(tapdisk.socket);
    for (const offset of places) expect((await client.write(offset, pattern(MIB, offset))).error).toBe(0);
    await client.close();
    await run("nbdcopy", ["--sparse=0", tapdisk.uri, copy], { seconds: 60 });
  });
  expect(statSync(copy).size).toBe(size * MIB);
  expect(spaceOf(copy)).toBeLessThanOrEqual(3 * BLOCK + MIB);
  // And into a disk: what is a hole there is zeroed without writing, which takes no space here.
  await whileServed(`vhd:${back}`, [], async (tapdisk) => {
    await run("nbdcopy", ["--sparse=0", copy, tapdisk.uri], { seconds: 60 });
    const client = await NbdClient.connect(tapdisk.socket);
    for (const offset of places) {
      expectSame((await client.read(offset, MIB)).data, pattern(MIB, offset), `at ${offset}`);
    }
    await client.close();
  });
  expect(spaceOf(back)).toBeLessThan(spaceOf(path) + 4 * BLOCK);
});

test("block status that can't be is refused, and the connection goes on", async () => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, 20, { subformat: "dynamic", forceSize: true });
  const size = 20 * MIB;
  const tapdisk = await serve(`vhd:${path}`);
  for (const options of [{ structuredReplies: false }, {}]) {
    const client = await NbdClient.connect(tapdisk.socket, options);
    expect((await client.request(command.blockStatus, 0, SECTOR)).error).toBe(nbdError.EINVAL);
    expect((await client.read(0, SECTOR)).error).toBe(0);
    await client.close();
  }
  const client = await NbdClient.connect(tapdisk.socket, { blockStatus: true });
  const wrong: [number | bigint, number, number][] = [
    [0, 0, 0],
    [0, 100, 0],
    [100, SECTOR, 0],
    [size, SECTOR, 0],
    [0, size + SECTOR, 0],
    [0, 0xffff_fe00, commandFlag.reqOne],
    [0xffff_ffff_ffff_fe00n, SECTOR, 0],
    [0, SECTOR, commandFlag.df],
  ];
  for (const [offset, length, flags] of wrong) {
    const { error, extents } = await client.request(command.blockStatus, offset, length, flags);
    expect([offset, length, error, extents]).toEqual([offset, length, nbdError.EINVAL, []]);
  }
  expect(await status(client, size - SECTOR, SECTOR)).toEqual([{ length: SECTOR, flags: HOLE }]);
  await client.close();
  await tapdisk.stop();
});

test("zeros that have to be fast are made, or refused where they would have to be written", async () => {
  // tmpfs makes holes, but can't zero what is to stay allocated.
  const path = `/dev/shm/tapvhd-test-${process.pid}.vhd`;
  onTestFinished(() => rmSync(path, { force: true }));
  await createWithQemu(path, 20, { subformat: "dynamic", forceSize: true });
  const content = contentWith(20 * MIB, [{ offset: 0, data: pattern(8 * MIB, 5) }]);
  const { fastZero, noHole } = commandFlag;
  await whileServed(`vhd:${path}`, [], async (tapdisk) => {
    const client = await NbdClient.connect(tapdisk.socket);
    expect((await client.write(0, content.subarray(0, 8 * MIB))).error).toBe(0);
    const zero = async (offset: number, length: number, flags: number) => {
      const { error } = await client.request(command.writeZeroes, offset, length, flags);
      if (error === 0) content.fill(0, offset, offset + length);
      return error;
    };
    expect(await zero(SECTOR, MIB, fastZero | noHole)).toBe(nbdError.ENOTSUP);
    expectSame((await client.read(0, 8 * MIB)).data, content.subarray(0, 8 * MIB), "after the refusal");
    expect(await zero(BLOCK + SECTOR, MIB, fastZero)).toBe(0);
    expect(await zero(2 * BLOCK, BLOCK, fastZero | commandFlag.fua)).toBe(0);
    expect(await zero(12 * MIB, MIB, fastZero)).toBe(0);
    expect(await zero(SECTOR, MIB, noHole)).toBe(0);
    await client.close();
    expectSame(await readThrough(tapdisk), content, "by tapdisk");
  });
  expectSame(await readWithQemu(path), content, "by qemu");
});
