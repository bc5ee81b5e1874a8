// What qemu wrote is read through tapdisk, and what tapdisk wrote is read by qemu, libvhdi and vhd-lib: byte for byte.

import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, MIB, pattern, SECTOR, sha256 } from "./support/data.ts";
import {
  applyExtents,
  contentWith,
  createWithQemu,
  type Extent,
  makeWithQemu,
  mayMount,
  type QemuImage,
  readThrough,
  readWithLibvhdi,
  readWithQemu,
  writeThrough,
  writeWithQemu,
} from "./support/images.ts";
import { temporaryDirectory } from "./support/run.ts";
import { backends, refused, serve, whileServed } from "./support/tapdisk.ts";
import { image } from "./support/vhd-image.ts";
import { readWithVhdLib } from "./support/vhd-lib.ts";

const SIZE = 21 * MIB; // not a multiple of a block
const BLOCK = 2 * MIB;

/** Single sectors at either side of a block's edge, a whole block, several blocks, and the disk's very ends. */
const extents: readonly Extent[] = [
  { offset: 0, data: pattern(SECTOR, 1) },
  { offset: 2 * MIB - SECTOR, data: pattern(2 * SECTOR, 2) },
  { offset: 4 * MIB, data: pattern(2 * MIB, 3) },
  { offset: 9 * MIB + 3 * SECTOR, data: pattern(5 * MIB, 4) },
  { offset: SIZE - 7 * SECTOR, data: pattern(7 * SECTOR, 5) },
];

const kinds: readonly QemuImage[] = [
  { subformat: "dynamic", forceSize: false },
  { subformat: "dynamic", forceSize: true },
  { subformat: "fixed", forceSize: false },
  { subformat: "fixed", forceSize: true },
];

describe.each(kinds)("an image of qemu's ($subformat, force_size=$forceSize)", (kind) => {
  const vhd = () => join(temporaryDirectory(), "disk.vhd");

  test("reads as it was written", async () => {
    const path = vhd();
    await makeWithQemu(path, contentWith(SIZE, extents), kind);
    const content = await whileServed(`vhd:${path}`, ["--read-only"], readThrough);
    // Without force_size there is more than was asked for, and it is empty.
    expectSame(content, contentWith(content.length, extents), "through tapdisk");
    if (kind.forceSize) expect(content.length).toBe(SIZE);
    expectSame(content, await readWithQemu(path), "qemu's own reading");
  });

  test.each(backends)("takes writes that every other program reads (%s)", async (backend) => {
    const path = vhd();
    await createWithQemu(path, SIZE / MIB, kind);
    const content = await whileServed(`vhd:${path}`, ["--io", backend], async (tapdisk) => {
      const before = await readThrough(tapdisk);
      expectSame(before, Buffer.alloc(before.length), "a new disk");
      await writeThrough(tapdisk, extents);
      applyExtents(before, extents);
      return before;
    });
    expectSame(await readWithQemu(path), content, "by qemu");
    if (kind.subformat === "dynamic") expectSame(await readWithVhdLib(path), content, "by vhd-lib");
    await whileServed(`vhd:${path}`, ["--io", backend], async (tapdisk) => {
      expectSame(await readThrough(tapdisk), content, "by the next tapdisk");
    });
  });

  test.runIf(mayMount)("takes writes that libvhdi reads", async () => {
    const path = vhd();
    await createWithQemu(path, SIZE / MIB, kind);
    const size = await whileServed(`vhd:${path}`, ["--direct"], async (tapdisk) => {
      await writeThrough(tapdisk, extents);
      return (await readThrough(tapdisk)).length;
    });
    expectSame(await readWithLibvhdi(path), contentWith(size, extents), "by libvhdi");
  });

  test("goes back and forth between qemu and tapdisk", async () => {
    const path = vhd();
    await makeWithQemu(path, contentWith(SIZE, extents), kind);
    const content = await readWithQemu(path);
    for (let round = 0; round < 2; round++) {
      const mine: Extent[] = [
        { offset: (round * 5 + 1) * MIB - 3 * SECTOR, data: pattern(MIB, 100 + round) },
        { offset: (20 - round) * MIB, data: pattern(3 * SECTOR, 200 + round) },
      ];
      await whileServed(`vhd:${path}`, [], (tapdisk) => writeThrough(tapdisk, mine));
      applyExtents(content, mine);
      const theirs = { offset: (round * 6 + 2) * MIB + SECTOR, data: pattern(MIB + SECTOR, 300 + round) };
      await writeWithQemu(path, theirs.offset, theirs.data);
      applyExtents(content, [theirs]);
      expectSame(await readWithQemu(path), content, `by qemu in round ${round}`);
      await whileServed(`vhd:${path}`, [], async (tapdisk) => {
        expectSame(await readThrough(tapdisk), content, `by tapdisk in round ${round}`);
      });
    }
  });
});

test("a dynamic image takes space for the blocks that were written, and no other", async () => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, 1024, { subformat: "dynamic" });
  await whileServed(`vhd:${path}`, [], (tapdisk) =>
    writeThrough(tapdisk, [
      { offset: 5 * MIB, data: pattern(SECTOR, 1) },
      { offset: 900 * MIB, data: pattern(SECTOR, 2) },
    ]),
  );
  const { size } = statSync(path);
  expect(size).toBeGreaterThan(4 * MIB);
  expect(size).toBeLessThan(4 * MIB + 64 * 1024);
});

test("a child into which qemu wrote, on top of its parent locator, is read and never written", async () => {
  const folder = temporaryDirectory();
  const [base, child] = [join(folder, "base.vhd"), join(folder, "child.vhd")];
  const present = { block: 1, present: () => true };
  const content = Buffer.alloc(SIZE);
  writeFileSync(base, image({ size: SIZE, blockSize: BLOCK, blocks: [present], fill: () => 5, uuid: 2 }, content));
  const parent = { uuid: 2, path: "base.vhd" };
  writeFileSync(child, image({ size: SIZE, blockSize: BLOCK, blocks: [], fill: () => 0, parent }, content));
  // It takes the child for a dynamic image whose first block goes right behind the BAT.
  const data = pattern(MIB, 1);
  await writeWithQemu(child, 0, data);
  content.set(data);
  const before = sha256(readFileSync(child));
  const what = "block 0 lies on the data of parent locator 0";
  expect((await refused(`vhd:${child}`)).stderr).toContain(`${child}: BAT: ${what}`);
  const tapdisk = await serve(`vhd:${child}`, "--read-only");
  expectSame(await readThrough(tapdisk), content, "through tapdisk");
  await tapdisk.stop(`tapdisk: warning: ${what}\n`);
  expect(sha256(readFileSync(child))).toBe(before);
});
