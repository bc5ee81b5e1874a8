/** Extents that leave partial bitmaps at every level of a chain, and a look at the bitmaps that are there. */

import { readFileSync } from "node:fs";
import { pattern, randomNumbers, SECTOR } from "./data.ts";
import type { Extent } from "./images.ts";

const LONGEST = 700;
const UNUSED = 0xffff_ffff;

/** Extents of whole sectors that don't overlap, some of them zeros. */
export function scattered(size: number, count: number, seed: number): Extent[] {
  const random = randomNumbers(seed);
  const slot = Math.floor(size / SECTOR / count);
  return Array.from({ length: count }, (_, index) => {
    const sectors = 1 + random(Math.min(slot, LONGEST));
    const first = index * slot + random(slot - sectors + 1);
    const data = pattern(sectors * SECTOR, seed * 1000 + index);
    if (index % 4 === 3) data.fill(0);
    return { offset: first * SECTOR, data };
  });
}

/** For each block of an image that is there, by its number: which of its sectors are. */
function bitmaps(path: string): Map<number, boolean[]> {
  const file = readFileSync(path);
  const header = Number(file.readBigUInt64BE(16));
  const table = Number(file.readBigUInt64BE(header + 16));
  const sectorsPerBlock = file.readUInt32BE(header + 32) / SECTOR;
  const size = Number(file.readBigUInt64BE(48)) / SECTOR;
  const blocks = new Map<number, boolean[]>();
  for (let block = 0; block * sectorsPerBlock < size; block++) {
    const place = file.readUInt32BE(table + block * 4);
    if (place === UNUSED) continue;
    const sectors = Math.min(sectorsPerBlock, size - block * sectorsPerBlock);
    const bits = Array.from({ length: sectors }, (_, sector) => {
      return ((file[place * SECTOR + (sector >> 3)] ?? 0) & (0x80 >> (sector & 7))) !== 0;
    });
    blocks.set(block, bits);
  }
  return blocks;
}

/** How many blocks of an image have some of their sectors, but not all. */
export function partialBlocks(path: string): number {
  return [...bitmaps(path).values()].filter((bits) => bits.includes(true) && bits.includes(false)).length;
}

/** Which sectors of a disk are in any image of its chain, all of one block size. */
export function sectorsInChain(paths: readonly string[], size: number, blockSize: number): boolean[] {
  const present = Array.from({ length: size / SECTOR }, () => false);
  for (const path of paths) {
    for (const [block, bits] of bitmaps(path)) {
      for (const [sector, bit] of bits.entries()) {
        if (bit) present[(block * blockSize) / SECTOR + sector] = true;
      }
    }
  }
  return present;
}
