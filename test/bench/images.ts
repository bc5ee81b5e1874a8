/** The disks: equal content for every contender, and the page cache in a known state. */

import { randomFillSync } from "node:crypto";
import { closeSync, openSync, readSync } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Program, run } from "./processes.ts";

const MIB = 1 << 20;
const READY_MS = 15_000;
const READY_STEP_MS = 10;
/** Of the images that runs of first writes begin with: so large that few places are hit twice. */
export const EMPTY_BYTES = 8 * 2 ** 30;
/** Of the disks that are under load at once: sixteen of them, in two formats, are in the page cache. */
export const SMALL_BYTES = 64 * MIB;
const FILE_BLOCK = 4096;

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

/**
 * Copies an image, or so many bytes of it. Page by page, so that the page cache holds single pages, as after random writes: in
 * large folios, which come from large writes and from reading ahead, ext4 goes through all blocks of a folio at each write to
 * one of them, and whoever overwrites 4 KiB is four times as slow.
 */
export async function copyFile(from: string, to: string, bytes?: number): Promise<void> {
  const part = bytes === undefined ? [] : [`count=${bytes}`, "iflag=count_bytes"];
  await run({ program: "dd", args: [`if=${from}`, `of=${to}`, `bs=${FILE_BLOCK}`, "status=none", ...part] });
}

/**
 * Makes a VHD with the content of a raw file, all of it allocated, as this project and the original lay it out: data at
 * multiples of 4 KiB. (qemu puts them anywhere, which costs every server half of its direct reads.)
 */
export async function makeVhd(from: string, to: string, bytes: number, commands: string): Promise<void> {
  await emptyImage(to, "vhd", bytes);
  const socket = `${to}.socket`;
  const args = ["serve", `vhd:${to}`, "--nbd", `unix:${socket}`];
  const server = new Program({ program: join(commands, "tapdisk"), args });
  try {
    for (let waited = 0; !server.stdout.includes("\n"); waited += READY_STEP_MS) {
      if (!server.alive || waited > READY_MS) {
        throw server.error("did not start");
      }
      await sleep(READY_STEP_MS);
    }
    await run({ program: "nbdcopy", args: [from, `nbd+unix:///?socket=${socket}`] });
  } finally {
    await server.stop("SIGTERM");
  }
}

/** Makes an image in which nothing is allocated. */
export async function emptyImage(path: string, format: "raw" | "vhd", bytes: number): Promise<void> {
  await rm(path, { force: true });
  if (format === "raw") {
    await run({ program: "truncate", args: ["--size", `${bytes}`, path] });
  } else {
    const options = ["-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on"];
    await run({ program: "qemu-img", args: ["create", ...options, path, `${bytes}`] });
  }
}

/**
 * Has the page cache hold all data of a file, and none of its holes, which nobody reads. Page by page from the end, which
 * the kernel takes for random reads: it reads nothing ahead, and pages stay single.
 */
export async function warm(path: string): Promise<void> {
  const extents = await dataExtents(path);
  const file = openSync(path, "r");
  const page = new Uint8Array(FILE_BLOCK);
  try {
    for (const { start, end } of extents.reverse()) {
      for (let at = end - page.length; at >= start; at -= page.length) {
        readSync(file, page, 0, page.length, at);
      }
    }
  } finally {
    closeSync(file);
  }
}

interface Extent {
  /** First byte. */
  readonly start: number;
  readonly end: number;
}

/** Where a file has data, in bytes. Not asked of qemu, which doesn't look into images that are being served. */
async function dataExtents(path: string): Promise<Extent[]> {
  await clean(path);
  const text = await run({ program: "filefrag", args: ["-v", `-b${FILE_BLOCK}`, path] });
  return [...text.matchAll(/^ *\d+: *(\d+)\.\. *(\d+):/gm)].map(([, first, last]) => ({
    start: Number(first) * FILE_BLOCK,
    end: (Number(last) + 1) * FILE_BLOCK,
  }));
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
