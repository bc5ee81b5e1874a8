/** The disks: equal content for every contender, and the page cache in a known state. */

import { randomFillSync } from "node:crypto";
import { open, rm } from "node:fs/promises";
import type { Case } from "./cases.ts";
import { run } from "./processes.ts";

const MIB = 1 << 20;
/** Of the images that runs of first writes begin with: so large that few places are hit twice. */
export const FRESH_BYTES = 8 * 2 ** 30;

/** Writes a file of `bytes` bytes in which no two sectors are equal, none is empty, and nothing compresses. */
export async function writeContent(path: string, bytes: number): Promise<void> {
  const chunk = randomFillSync(new Uint32Array(MIB / 4));
  const file = await open(path, "w");
  try {
    for (let at = 0; at < bytes; at += MIB) {
      for (let word = 0; word < chunk.length; word += 512 / 4) {
        chunk[word] = at / 512 + word / (512 / 4);
      }
      await file.write(chunk, 0, Math.min(MIB, bytes - at));
    }
  } finally {
    await file.close();
  }
}

/** Makes an image with the content of a raw file, all of it allocated. */
export async function copyImage(from: string, to: string, format: "raw" | "vhd"): Promise<void> {
  if (format === "raw") {
    await run({ program: "cp", args: ["--reflink=never", "--sparse=never", from, to] });
  } else {
    const output = ["-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
    await run({ program: "qemu-img", args: ["convert", ...output, from, to] });
  }
}

/** Makes an image in which nothing is allocated. */
export async function emptyImage(path: string, format: "raw" | "vhd"): Promise<void> {
  await rm(path, { force: true });
  if (format === "raw") {
    await run({ program: "truncate", args: ["--size", `${FRESH_BYTES}`, path] });
  } else {
    const options = ["-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on"];
    await run({ program: "qemu-img", args: ["create", ...options, path, `${FRESH_BYTES}`] });
  }
}

/** Has the page cache hold all of a file. */
export async function warm(path: string): Promise<void> {
  const file = await open(path, "r");
  const buffer = new Uint8Array(4 * MIB);
  try {
    while ((await file.read(buffer, 0, buffer.length)).bytesRead > 0);
  } finally {
    await file.close();
  }
}

/** Writes a file's dirty pages back, so that it doesn't happen while another contender is measured. */
export async function clean(path: string): Promise<void> {
  await run({ program: "sync", args: ["--data", path] });
}

/** Has the page cache hold nothing of a file. */
export async function cool(path: string): Promise<void> {
  await clean(path);
  await run({ program: "dd", args: [`if=${path}`, "iflag=nocache", "count=0", "status=none"] });
}

export function diskBytes(one: Case, bytes: number): number {
  return one.fresh ? FRESH_BYTES : bytes;
}
