// Images of vhd-lib (Xen Orchestra's): what it wrote is read through tapdisk, and what tapdisk wrote into them is read by
// vhd-lib, qemu and libvhdi: byte for byte.

import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, MIB, pattern, SECTOR } from "./support/data.ts";
import {
  applyExtents,
  contentWith,
  type Extent,
  mayMount,
  readThrough,
  readWithLibvhdi,
  readWithQemu,
  writeThrough,
} from "./support/images.ts";
import { temporaryDirectory } from "./support/run.ts";
import { whileServed } from "./support/tapdisk.ts";
import { makeDynamic, makeFixed, readWithVhdLib, writeWithVhdLib } from "./support/vhd-lib.ts";

const SIZE = 16 * MIB;
const GRAIN = 64 * 1024;

/** Blocks of which some parts were given: vhd-lib clears the bits of the others. */
const fragments = [0, 1, 7, 16, 80, 99, 130].map((grain) => ({
  logicalAddressBytes: grain * GRAIN,
  data: pattern(GRAIN, grain),
}));

const given: readonly Extent[] = fragments.map(({ logicalAddressBytes, data }) => ({
  offset: logicalAddressBytes,
  data,
}));

/** Over some of what was there, between it, and into new blocks. */
const extents: readonly Extent[] = [
  { offset: 5 * GRAIN - SECTOR, data: pattern(3 * GRAIN, 1000) },
  { offset: 85 * GRAIN, data: pattern(3 * SECTOR, 1001) },
  { offset: 10 * MIB + 5 * SECTOR, data: pattern(3 * MIB, 1002) },
];

describe("a dynamic image of vhd-lib's", () => {
  test("reads as it was written", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await makeDynamic(path, SIZE, fragments);
    const content = await whileServed(`vhd:${path}`, ["--read-only"], readThrough);
    expect(content.length).toBeGreaterThanOrEqual(SIZE);
    expectSame(content, contentWith(content.length, given), "through tapdisk");
    expectSame(content, await readWithVhdLib(path), "vhd-lib's own reading");
  });

  test("takes writes that every other program reads", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await makeDynamic(path, SIZE, fragments);
    await whileServed(`vhd:${path}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    const actual = await readWithVhdLib(path);
    expectSame(actual, contentWith(actual.length, [...given, ...extents]), "by vhd-lib");
    expectSame(await readWithQemu(path), actual, "by qemu");
    expectSame(await whileServed(`vhd:${path}`, [], readThrough), actual, "by the next tapdisk");
  });

  test.runIf(mayMount)("takes writes that libvhdi reads", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await makeDynamic(path, SIZE, fragments);
    await whileServed(`vhd:${path}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    const actual = await readWithLibvhdi(path);
    expectSame(actual, contentWith(actual.length, [...given, ...extents]), "by libvhdi");
  });

  test("goes back and forth between vhd-lib and tapdisk", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await makeDynamic(path, SIZE, fragments);
    const content = await readWithVhdLib(path);
    for (let round = 0; round < 3; round++) {
      const mine = { offset: (4 * round + 1) * MIB + SECTOR, data: pattern(MIB, 2000 + round) };
      await whileServed(`vhd:${path}`, [], (tapdisk) => writeThrough(tapdisk, [mine]));
      const theirs = { offset: (5 * round + 3) * MIB - 5 * SECTOR, data: pattern(2 * MIB, 3000 + round) };
      await writeWithVhdLib(path, theirs.offset / SECTOR, theirs.data);
      applyExtents(content, [mine, theirs]);
      expectSame(await readWithVhdLib(path), content, `by vhd-lib in round ${round}`);
      expectSame(await whileServed(`vhd:${path}`, [], readThrough), content, `by tapdisk in round ${round}`);
    }
  });
});

test("a fixed image of vhd-lib's reads as it was written, and takes writes that qemu reads", async () => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await makeFixed(path, SIZE, fragments);
  await whileServed(`vhd:${path}`, [], async (tapdisk) => {
    const content = await readThrough(tapdisk);
    expectSame(content, contentWith(content.length, given), "through tapdisk");
    await writeThrough(tapdisk, extents);
  });
  const actual = await readWithQemu(path);
  expectSame(actual, contentWith(actual.length, [...given, ...extents]), "by qemu");
});
