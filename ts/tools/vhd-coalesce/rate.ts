import { closeSync, fdatasyncSync, openSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";

const BYTES = 64 << 20;
const PIECE = 4 << 20;

/** Bytes that a file system takes in a second, by writing a little to it; nothing where that isn't possible. */
export function writeRate(folder: string): number | undefined {
  const path = join(folder, `.vhd-coalesce-${process.pid}`);
  try {
    const file = openSync(path, "wx");
    try {
      rmSync(path);
      // Zeros might be taken for less.
      const piece = Buffer.alloc(PIECE, "vhd-coalesce");
      const start = performance.now();
      for (let written = 0; written < BYTES; written += PIECE) writeSync(file, piece);
      fdatasyncSync(file);
      return BYTES / ((performance.now() - start) / 1000);
    } finally {
      closeSync(file);
    }
  } catch {
    return undefined;
  }
}
