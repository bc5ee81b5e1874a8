/** Chains of differencing images whose fragments are interleaved: neighbouring 4 KiB never come from the same file. */

import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { basename } from "node:path";
import { footerFor, sealHeader } from "../support/vhd-image.ts";

const SECTOR = 512;
const BLOCK = 2 << 20;
const FRAGMENT = 4096;
const DYNAMIC = 3;
const DIFFERENCING = 4;
const HEADER_AT = 512;
const TABLE_AT = 1536;

/** The files of a chain, its leaf first; just the image where it is no chain. */
export function chainFiles(leaf: string, length = 1): string[] {
  return [leaf, ...Array.from({ length: length - 1 }, (_, index) => leaf.replace(/\.vhd$/, `.${index + 1}.vhd`))];
}

/** Makes a chain with the content of a raw file of `bytes` bytes. */
export async function makeChain(content: string, leaf: string, length: number, bytes: number): Promise<void> {
  const source = openSync(content, "r");
  const files = chainFiles(leaf, length);
  try {
    files.forEach((file, level) => {
      writeLevel(source, file, files[level + 1], level, length, bytes);
    });
  } finally {
    closeSync(source);
  }
}

/** Writes the level that holds every `length`-th fragment, in all blocks. Its file is sparse. */
function writeLevel(
  source: number,
  path: string,
  parent: string | undefined,
  level: number,
  length: number,
  bytes: number,
): void {
  const blocks = Math.ceil(bytes / BLOCK);
  const table = Buffer.alloc(Math.ceil((blocks * 4) / SECTOR) * SECTOR, 0xff);
  const footer = footerFor(parent === undefined ? DYNAMIC : DIFFERENCING, bytes, level + 1);
  const bitmap = Buffer.alloc(SECTOR);
  const fragment = Buffer.alloc(FRAGMENT);
  const file = openSync(path, "w");
  try {
    let end = TABLE_AT + table.length;
    for (let block = 0; block < blocks; block++) {
      // Data begin at a multiple of a fragment, the bitmap is in the sector before.
      const data = Math.ceil((end + SECTOR) / FRAGMENT) * FRAGMENT;
      table.writeUInt32BE((data - SECTOR) / SECTOR, block * 4);
      bitmap.fill(0);
      for (let index = 0; index < BLOCK / FRAGMENT; index++) {
        if (index % length === level) {
          bitmap[index] = 0xff;
          readSync(source, fragment, 0, FRAGMENT, block * BLOCK + index * FRAGMENT);
          writeSync(file, fragment, 0, FRAGMENT, data + index * FRAGMENT);
        }
      }
      writeSync(file, bitmap, 0, SECTOR, data - SECTOR);
      end = data + BLOCK;
    }
    writeSync(file, footer, 0, footer.length, 0);
    writeSync(file, dynamicHeader(blocks, level, parent), 0, 1024, HEADER_AT);
    writeSync(file, table, 0, table.length, TABLE_AT);
    writeSync(file, footer, 0, footer.length, end);
  } finally {
    closeSync(file);
  }
}

/** The header of an image with so many blocks of 2 MiB; its parent is the next `level`. */
export function dynamicHeader(blocks: number, level: number, parent: string | undefined): Buffer {
  const header = Buffer.alloc(1024);
  header.write("cxsparse", 0, "latin1");
  header.writeBigUInt64BE(0xffff_ffff_ffff_ffffn, 8);
  header.writeBigUInt64BE(BigInt(TABLE_AT), 16);
  header.writeUInt32BE(0x10000, 24);
  header.writeUInt32BE(blocks, 28);
  header.writeUInt32BE(BLOCK, 32);
  if (parent !== undefined) {
    header.fill(level + 2, 40, 56);
    Buffer.from(basename(parent), "utf16le").swap16().copy(header, 64);
  }
  sealHeader(header);
  return header;
}
