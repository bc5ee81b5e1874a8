// Images that Windows wrote: tapdisk reads them as other programs do, and writes into them what other programs read.

import { writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, MIB, pattern, SECTOR, sha256 } from "./support/data.ts";
import {
  applyExtents,
  type Extent,
  mayMount,
  readThrough,
  readWithLibvhdi,
  readWithQemu,
  writeThrough,
} from "./support/images.ts";
import { temporaryDirectory } from "./support/run.ts";
import { whileServed } from "./support/tapdisk.ts";
import { windowsImage, windowsImages } from "./support/windows.ts";

describe.each(windowsImages)("Windows' $name ($type)", (image) => {
  const extents: readonly Extent[] = [
    { offset: 5 * SECTOR, data: pattern(SECTOR, 1) },
    { offset: 2 * MIB - 3 * SECTOR, data: pattern(MIB + SECTOR, 2) },
    { offset: image.size - MIB, data: pattern(MIB, 3) },
  ];

  test("reads as it does with qemu and libvhdi, and is left alone", async () => {
    const path = join(temporaryDirectory(), image.name);
    writeFileSync(path, await windowsImage(image));
    const content = await whileServed(`vhd:${path}`, ["--read-only"], readThrough);
    expect(content.length).toBe(image.size);
    // A boot sector with a partition, so that two empty readings can't agree.
    expect(content.subarray(510, 512).toString("hex")).toBe("55aa");
    expectSame(content, await readWithQemu(path), "qemu's reading");
    if (mayMount) expectSame(content, await readWithLibvhdi(path), "libvhdi's reading");
    // Served for writing, but not written.
    expectSame(await whileServed(`vhd:${path}`, [], readThrough), content, "the second reading");
    expect(sha256(await readFile(path))).toBe(image.sha256);
  });

  test("takes writes that qemu and libvhdi read", async () => {
    const path = join(temporaryDirectory(), image.name);
    writeFileSync(path, await windowsImage(image));
    const content = await readWithQemu(path);
    await whileServed(`vhd:${path}`, [], (tapdisk) => writeThrough(tapdisk, extents));
    applyExtents(content, extents);
    expectSame(await readWithQemu(path), content, "by qemu");
    if (mayMount) expectSame(await readWithLibvhdi(path), content, "by libvhdi");
    expectSame(await whileServed(`vhd:${path}`, [], readThrough), content, "by the next tapdisk");
  });
});
