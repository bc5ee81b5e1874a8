/** A dynamic VHD written from its first byte to its last, for pipes: an empty image whose blocks are filled in. */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as z from "zod";
import type { DiskIo } from "../../host/disk-io.ts";
import { ToolError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import { writeOut } from "../cli/raw-output.ts";
import { identity } from "./create.ts";
import { describeImage } from "./image.ts";

const SECTOR = 512;
/** Data of blocks begin at multiples of this many sectors, as everywhere else. */
const ALIGNMENT = 8;

/** Makes an empty image, which takes little space whatever the disk's size, and hands its path over. */
async function withEmpty<T>(
  jobs: Jobs,
  type: "dynamic" | "fixed",
  size: number,
  work: (path: string) => Promise<T>,
): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "vhd-util-"));
  const path = join(folder, "empty.vhd");
  try {
    await jobs.run({ job: "create", path, type, size, ...identity() }, z.null());
    return await work(path);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The footer of a fixed disk: what stands behind its data. */
export async function fixedFooter(jobs: Jobs, size: number): Promise<Buffer> {
  return await withEmpty(jobs, "fixed", size, async (path) => {
    const sector = Buffer.alloc(SECTOR);
    await jobs.withDisk({ driver: "aio", path, access: "read" }, (io) =>
      io.read(size / SECTOR, 1, (bytes) => sector.set(bytes)),
    );
    return sector;
  });
}

/** Writes a disk to standard output as a dynamic VHD that has the blocks of which `has` says so. */
export async function streamDynamic(
  jobs: Jobs,
  io: DiskIo,
  size: number,
  has: (sector: number, sectors: number) => boolean,
): Promise<void> {
  const { bytes, header } = await withEmpty(jobs, "dynamic", size, async (path) => ({
    bytes: readFileSync(path),
    header: (await describeImage(jobs, path, {})).header,
  }));
  if (header === null) throw new ToolError("an empty image has no header");
  const [table, block] = [Number(header.tableOffset), header.blockSize];
  const footer = bytes.subarray(-SECTOR);
  const head = Buffer.from(bytes.subarray(0, -SECTOR));
  const perBlock = block / SECTOR;
  const bitmap = Buffer.alloc(Math.ceil(perBlock / 8 / SECTOR) * SECTOR, 0xff);
  const sectors = size / SECTOR;
  const blocks = Array.from({ length: Math.ceil(sectors / perBlock) }, (_, index) => index).filter((index) =>
    has(index * perBlock, perBlock),
  );
  const bitmapSectors = bitmap.length / SECTOR;
  const place = (sector: number) => Math.ceil((sector + bitmapSectors) / ALIGNMENT) * ALIGNMENT - bitmapSectors;
  let end = head.length / SECTOR;
  for (const index of blocks) {
    const at = place(end);
    head.writeUInt32BE(at, table + 4 * index);
    end = at + bitmapSectors + perBlock;
  }
  writeOut(head);
  end = head.length / SECTOR;
  for (const index of blocks) {
    const at = place(end);
    writeOut(Buffer.alloc((at - end) * SECTOR));
    writeOut(bitmap);
    const first = index * perBlock;
    const there = Math.min(perBlock, sectors - first);
    await io.read(first, there, writeOut);
    writeOut(Buffer.alloc((perBlock - there) * SECTOR));
    end = at + bitmapSectors + perBlock;
  }
  writeOut(footer);
}
