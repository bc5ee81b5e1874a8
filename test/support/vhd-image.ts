/**
 * VHDs byte by byte, written from the specification ("Virtual Hard Disk Image Format Specification", Microsoft, 2006) and
 * not with the engine: with partial bitmaps, blocks in any order, and with damage.
 */

import { SECTOR } from "./data.ts";

export const FOOTER_BYTES = 512;
export const HEADER_BYTES = 1024;

/** Offset and length of each field. */
export const footerFields = {
  cookie: [0, 8],
  features: [8, 4],
  formatVersion: [12, 4],
  dataOffset: [16, 8],
  timestamp: [24, 4],
  creatorApplication: [28, 4],
  creatorVersion: [32, 4],
  creatorHostOs: [36, 4],
  originalSize: [40, 8],
  currentSize: [48, 8],
  geometry: [56, 4],
  diskType: [60, 4],
  checksum: [64, 4],
  uuid: [68, 16],
  savedState: [84, 1],
  reserved: [85, 427],
} as const;

export const headerFields = {
  cookie: [0, 8],
  dataOffset: [8, 8],
  tableOffset: [16, 8],
  headerVersion: [24, 4],
  maxTableEntries: [28, 4],
  blockSize: [32, 4],
  checksum: [36, 4],
  parentUuid: [40, 16],
  parentTimestamp: [56, 4],
  reserved1: [60, 4],
  parentName: [64, 512],
  locators: [576, 192],
  reserved2: [768, 256],
} as const;

/** The one's complement of the sum of all bytes but the checksum's own. */
function checksum(structure: Buffer, at: number): number {
  let sum = 0;
  for (const [index, byte] of structure.entries()) {
    if (index < at || index >= at + 4) sum += byte;
  }
  return ~sum >>> 0;
}

/** Makes the checksum of a footer (512 bytes) right. */
export function sealFooter(footer: Buffer): void {
  footer.writeUInt32BE(checksum(footer, footerFields.checksum[0]), footerFields.checksum[0]);
}

/** Makes the checksum of a dynamic header (1024 bytes) right. */
export function sealHeader(header: Buffer): void {
  header.writeUInt32BE(checksum(header, headerFields.checksum[0]), headerFields.checksum[0]);
}

const UNUSED = 0xffff_ffff;
const DIFFERENCING = 4;
const DYNAMIC = 3;
const FIXED = 2;

export function footerFor(diskType: number, size: number, uuid: number): Buffer {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.write("conectix", 0, "latin1");
  footer.writeUInt32BE(2, 8);
  footer.writeUInt32BE(0x10000, 12);
  footer.writeBigUInt64BE(diskType === FIXED ? 0xffff_ffff_ffff_ffffn : 512n, 16);
  footer.write("test", 28, "latin1");
  footer.writeBigUInt64BE(BigInt(size), 40);
  footer.writeBigUInt64BE(BigInt(size), 48);
  footer.writeUInt32BE(diskType, 60);
  footer.fill(uuid, 68, 84);
  sealFooter(footer);
  return footer;
}

export function fixedImage(disk: Uint8Array): Buffer {
  return Buffer.concat([disk, footerFor(FIXED, disk.length, 1)]);
}

/** A block that is in the file: which of its sectors are, and what is under the clear bits. */
export interface BlockSpec {
  readonly block: number;
  readonly present: (sector: number) => boolean;
}

export interface ImageSpec {
  /** Of the disk; bytes. */
  readonly size: number;
  readonly blockSize: number;
  /** In file order. */
  readonly blocks: readonly BlockSpec[];
  /** The byte that fills a present sector of the disk. */
  readonly fill: (sector: number) => number;
  readonly uuid?: number;
  /** For a differencing image: its parent's UUID byte, and its path relative to the child. */
  readonly parent?: { readonly uuid: number; readonly path: string };
}

/** Where the structures of {@link image}'s images are. */
export const places = { backupFooter: 0, header: 512, table: 1536 } as const;

/** An image with a BAT. What it holds is put on top of `disk`, which may have the parent's content. */
export function image(spec: ImageSpec, disk: Uint8Array): Buffer {
  const { size, blockSize, blocks, parent } = spec;
  const footer = footerFor(parent === undefined ? DYNAMIC : DIFFERENCING, size, spec.uuid ?? 1);
  const entries = Math.ceil(size / blockSize);
  const table = Buffer.alloc(Math.ceil((entries * 4) / SECTOR) * SECTOR, 0xff);
  const header = Buffer.alloc(HEADER_BYTES);
  header.write("cxsparse", 0, "latin1");
  header.writeBigUInt64BE(0xffff_ffff_ffff_ffffn, 8);
  header.writeBigUInt64BE(BigInt(places.table), 16);
  header.writeUInt32BE(0x10000, 24);
  header.writeUInt32BE(entries, 28);
  header.writeUInt32BE(blockSize, 32);
  const parts: Buffer[] = [];
  let next = (places.table + table.length) / SECTOR;
  if (parent !== undefined) {
    const path = Buffer.from(`.\\${parent.path}`, "utf16le");
    header.fill(parent.uuid, 40, 56);
    Buffer.from(parent.path, "utf16le").swap16().copy(header, 64);
    header.write("W2ru", 576, "latin1");
    header.writeUInt32BE(SECTOR, 580);
    header.writeUInt32BE(path.length, 584);
    header.writeBigUInt64BE(BigInt(next * SECTOR), 592);
    parts.push(Buffer.concat([path], SECTOR));
    next += 1;
  }
  sealHeader(header);
  const sectorsPerBlock = blockSize / SECTOR;
  const bitmapBytes = Math.ceil(sectorsPerBlock / 8 / SECTOR) * SECTOR;
  for (const { block, present } of blocks) {
    table.writeUInt32BE(next, block * 4);
    const bitmap = Buffer.alloc(bitmapBytes);
    const data = Buffer.alloc(blockSize);
    for (let sector = 0; sector < sectorsPerBlock; sector++) {
      const onDisk = block * sectorsPerBlock + sector;
      if (!present(sector) || onDisk * SECTOR >= size) continue;
      bitmap[sector >> 3] = (bitmap[sector >> 3] ?? 0) | (0x80 >> (sector & 7));
      data.fill(spec.fill(onDisk), sector * SECTOR, (sector + 1) * SECTOR);
      disk.fill(spec.fill(onDisk), onDisk * SECTOR, (onDisk + 1) * SECTOR);
    }
    parts.push(bitmap, data);
    next += (bitmapBytes + blockSize) / SECTOR;
  }
  return Buffer.concat([footer, header, table, ...parts, footer]);
}

export const unusedBlock: number = UNUSED;
