/** Sparse images that claim to be full: their blocks are holes of the file. */

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { MIB, SECTOR } from "./data.ts";
import { footerFor, HEADER_BYTES, sealHeader } from "./vhd-image.ts";

const BLOCK = 2 * MIB;
/** Sectors from the bitmap of a block to that of the next one, as blktap places them. */
const STRIDE = 4104;
const DYNAMIC = 3;

/** Blocks of the largest disk: 2040 GiB. */
export const LARGEST = (2040 * 1024 * MIB) / BLOCK;

/** A dynamic image of so many blocks of 2 MiB, all allocated; its bitmaps are clear. Takes 4 bytes for each. */
export function makeLarge(path: string, blocks: number): void {
  const footer = footerFor(DYNAMIC, blocks * BLOCK, 7);
  const header = Buffer.alloc(HEADER_BYTES);
  header.write("cxsparse");
  header.fill(0xff, 8, 16);
  header.writeBigUInt64BE(1536n, 16);
  header.writeUInt32BE(0x10000, 24);
  header.writeUInt32BE(blocks, 28);
  header.writeUInt32BE(BLOCK, 32);
  sealHeader(header);
  const table = Buffer.alloc(Math.ceil(blocks / 128) * SECTOR, 0xff);
  const first = Math.ceil((1536 + table.length) / 4096) * 8 + 7;
  for (let block = 0; block < blocks; block++) table.writeUInt32BE(first + block * STRIDE, block * 4);
  const end = (first + (blocks - 1) * STRIDE + 1 + BLOCK / SECTOR) * SECTOR;
  const file = openSync(path, "wx");
  try {
    writeSync(file, Buffer.concat([footer, header, table]));
    ftruncateSync(file, end + footer.length);
    writeSync(file, footer, 0, footer.length, end);
  } finally {
    closeSync(file);
  }
}
