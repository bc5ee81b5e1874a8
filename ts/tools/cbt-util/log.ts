/**
 * Logs of changed blocks, as blktap's `log` driver keeps them: a header of 48 bytes (UUIDs of the log before and behind
 * this one, whether the log is complete, size of the disk; little-endian) and one bit for each 64 KiB, the least significant
 * bit of a byte first, in whole words of 64 bits.
 */

import { randomUUID } from "node:crypto";
import { closeSync, fstatSync, fsyncSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { syncFolder } from "../../host/files.ts";
import { ToolError } from "../cli/failure.ts";

const { EINVAL, EIO } = constants.errno;
const HEADER = 48;
const BLOCK = 1 << 16;
const WORD_BITS = 64;
/** Larger disks have larger logs than anybody means. */
export const MAX_SIZE = 2 ** 50;

/** A log in memory. */
export interface CbtLog {
  parent: string;
  child: string;
  /** The log knows of all changes. */
  consistent: number;
  /** Bytes of the disk. */
  size: number;
  bitmap: Buffer;
}

/** A UUID of nothing. */
export const NIL = "00000000-0000-0000-0000-000000000000";

/** Bytes of the bitmap of a disk. */
export function bitmapBytes(size: number): number {
  return Math.ceil(Math.ceil(size / BLOCK) / WORD_BITS) * (WORD_BITS / 8);
}

/** Whether a text is a UUID. */
export function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text);
}

function uuidAt(bytes: Buffer, offset: number): string {
  const digits = bytes.toString("hex", offset, offset + 16);
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/**
 * Reads a log.
 * @throws ToolError when it is none, the system's error when it can't be read
 */
export function readLog(path: string): CbtLog {
  const file = openSync(path, "r");
  try {
    const header = Buffer.alloc(HEADER);
    if (readAll(file, header, 0) < HEADER) throw damaged(path, `a header of ${HEADER} bytes`, fstatSync(file).size);
    const size = Number(header.readBigUInt64LE(40));
    if (size > MAX_SIZE) throw damaged(path, `a size of at most ${MAX_SIZE} bytes`, size);
    const bitmap = Buffer.alloc(bitmapBytes(size));
    const got = readAll(file, bitmap, HEADER);
    if (got < bitmap.length) throw damaged(path, `a bitmap of ${bitmap.length} bytes`, got);
    return { parent: uuidAt(header, 0), child: uuidAt(header, 16), consistent: header.readInt32LE(32), size, bitmap };
  } finally {
    closeSync(file);
  }
}

function damaged(path: string, expected: string, found: number): ToolError {
  return new ToolError(`${path}: this is no log of changed blocks: found ${found}, expected ${expected}`, EIO);
}

function readAll(file: number, bytes: Buffer, offset: number): number {
  let done = 0;
  while (done < bytes.length) {
    const got = readSync(file, bytes, done, bytes.length - done, offset + done);
    if (got === 0) break;
    done += got;
  }
  return done;
}

function encode({ parent, child, consistent, size, bitmap }: CbtLog): Buffer {
  const header = Buffer.alloc(HEADER);
  header.write(parent.replaceAll("-", ""), 0, "hex");
  header.write(child.replaceAll("-", ""), 16, "hex");
  header.writeInt32LE(consistent, 32);
  header.writeBigUInt64LE(BigInt(size), 40);
  return Buffer.concat([header, bitmap]);
}

/**
 * Writes a log: whoever opens it finds the old one or the new one, also after a power cut.
 * @throws the system's error
 */
export function writeLog(path: string, log: CbtLog): void {
  const temporary = `${path}.${randomUUID()}.new`;
  const mode = modeOf(path);
  const file = openSync(temporary, "wx", mode);
  try {
    const bytes = encode(log);
    for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
    fsyncSync(file);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  } finally {
    closeSync(file);
  }
  syncFolder(path);
}

function modeOf(path: string): number {
  try {
    const file = openSync(path, "r");
    try {
      return fstatSync(file).mode & 0o777;
    } finally {
      closeSync(file);
    }
  } catch {
    return 0o666;
  }
}

/**
 * Makes a log for a larger disk: new blocks are unchanged.
 * @throws ToolError for a smaller one
 */
export function grow(log: CbtLog, size: number): void {
  if (size < log.size) throw new ToolError(`Size smaller than current file size (${log.size})`, EINVAL);
  const bitmap = Buffer.alloc(bitmapBytes(size));
  log.bitmap.copy(bitmap);
  log.size = size;
  log.bitmap = bitmap;
}

/**
 * Adds the changes that one log knows to another.
 * @throws ToolError when that is of a smaller disk
 */
export function merge(from: CbtLog, into: CbtLog): void {
  if (from.bitmap.length > into.bitmap.length) {
    throw new ToolError("Parent bitmap larger than child bitmap, can't coalesce", EINVAL);
  }
  for (const [index, byte] of from.bitmap.entries()) into.bitmap[index] = (into.bitmap[index] ?? 0) | byte;
}
