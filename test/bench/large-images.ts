/**
 * Images of 2040 GiB, the largest that the original makes. They are sparse: what is never read of them takes no space.
 */

import { closeSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { FOOTER_BYTES, footerFields, footerFor, sealFooter } from "../support/vhd-image.ts";
import { chainFiles, dynamicHeader } from "./chains.ts";

const SECTOR = 512;
const PAGE = 4096;
const BLOCK = 2 << 20;
const BITMAP = 512;
const TABLE_AT = 1536;
const UNUSED = 0xff;
const DYNAMIC = 3;
const DIFFERENCING = 4;

export const LARGEST_BYTES = 2040 * 2 ** 30;
const BLOCKS = LARGEST_BYTES / BLOCK;
/** From a block's bitmap to that of the next one, as blktap places them: data begin at multiples of a page. */
const STRIDE = BLOCK + PAGE;
const TABLE_BYTES = BLOCKS * 4;
/** The last sector of the page before the first block's data. */
const FIRST_BITMAP = Math.ceil((TABLE_AT + TABLE_BYTES) / PAGE) * PAGE + PAGE - BITMAP;

/**
 * One block in so many is in the file, so that bitmaps and the data that are read, a page each, take one GiB. Who has a
 * cache of bitmaps gets this share of it, so that hits are as rare as on a full disk with all of the cache.
 */
export const LARGEST_SPREAD = 8;
/** Reads begin at multiples of this: where there are data. */
export const LARGEST_ALIGN = LARGEST_SPREAD * BLOCK;

/** The page before a block's data, which ends with a bitmap, and the only page of its data: eight sectors are there. */
const PAGES = Buffer.alloc(2 * PAGE, 0x5a);
PAGES.fill(0, 0, PAGE);
PAGES[PAGE - BITMAP] = 0xff;

function writePages(file: number, bitmapAt: number): void {
  writeSync(file, PAGES, 0, PAGES.length, bitmapAt - (PAGE - BITMAP));
}

/** Makes the image; its blocks have only their first 4 KiB, full of 0x5a, and partial bitmaps that say so. */
export function makeLargest(path: string): void {
  write(path, { uuid: 1, parent: undefined, has: (block) => block % LARGEST_SPREAD === 0 }, writePages);
}

/** Has the page cache hold what is read of that image. */
export function warmLargest(path: string): void {
  const pages = Buffer.alloc(2 * PAGE);
  const file = openSync(path, "r");
  try {
    readSync(file, Buffer.alloc(FIRST_BITMAP), 0, FIRST_BITMAP, 0);
    for (let index = 0; index < BLOCKS / LARGEST_SPREAD; index++) {
      readSync(file, pages, 0, pages.length, FIRST_BITMAP + index * STRIDE - (PAGE - BITMAP));
    }
  } finally {
    closeSync(file);
  }
}

/**
 * Makes a chain: its base has all blocks, each of the others one in ten. Bitmaps are clear, but for the first block of the
 * base, which has its first 4 KiB.
 */
export function makeLargestChain(leaf: string, length: number): void {
  const files = chainFiles(leaf, length);
  files.forEach((file, level) => {
    const parent = files[level + 1];
    const has = (block: number) => parent === undefined || block % 10 === level % 10;
    write(file, { uuid: level + 1, parent, has }, (descriptor, at, block) => {
      if (parent === undefined && block === 0) {
        writePages(descriptor, at);
      }
    });
  });
}

interface Level {
  readonly uuid: number;
  readonly parent: string | undefined;
  readonly has: (block: number) => boolean;
}

/** Writes the metadata; `fill` gets the place of each block's bitmap. */
function write(path: string, level: Level, fill: (file: number, bitmapAt: number, block: number) => void): void {
  const footer = footerFor(level.parent === undefined ? DYNAMIC : DIFFERENCING, LARGEST_BYTES, level.uuid);
  // Others guess the size from the geometry, but for makers that they know.
  footer.write("tap\0", footerFields.creatorApplication[0], "latin1");
  sealFooter(footer);
  const table = Buffer.alloc(TABLE_BYTES, UNUSED);
  const file = openSync(path, "wx");
  try {
    let at = FIRST_BITMAP;
    for (let block = 0; block < BLOCKS; block++) {
      if (level.has(block)) {
        table.writeUInt32BE(at / SECTOR, block * 4);
        fill(file, at, block);
        at += STRIDE;
      }
    }
    const header = dynamicHeader(BLOCKS, level.uuid - 1, level.parent);
    writeSync(file, Buffer.concat([footer, header, table]), 0, TABLE_AT + TABLE_BYTES, 0);
    const end = at - (PAGE - BITMAP);
    ftruncateSync(file, end + FOOTER_BYTES);
    writeSync(file, footer, 0, FOOTER_BYTES, end);
  } finally {
    closeSync(file);
  }
}
