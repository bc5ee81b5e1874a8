/** Our tools, as programs. */

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { loadEngineModule } from "../../ts/engine/load-node.ts";
import { DiskIo } from "../../ts/host/disk-io.ts";
import { portModule } from "../../ts/tapdisk/port.ts";
import { SECTOR } from "./data.ts";
import type { Extent } from "./images.ts";

const SECONDS = 60;

/** How a tool ended, and what it said. */
export interface ToolResult {
  readonly status: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** The path of a command that the build made. */
export function builtCommand(name: string): string {
  return fileURLToPath(new URL(`../../build/bin/${name}`, import.meta.url));
}

/** Runs a program in a folder to its end. Times are told in UTC, and nothing is coloured. */
export function runIn(
  folder: string,
  program: string,
  args: readonly string[],
  { input, env = {} }: { input?: Buffer; env?: NodeJS.ProcessEnv } = {},
): ToolResult {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    cwd: folder,
    env: { ...process.env, TZ: "UTC", ...env },
    maxBuffer: 256 << 20,
    timeout: SECONDS * 1000,
    ...(input === undefined ? {} : { input }),
  });
  // One that ends early need not read what it is given.
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  if ((error !== undefined && code !== "EPIPE") || status === null) {
    throw new Error(`${program} ${args.join(" ")} did not end by itself: ${error?.message ?? stderr}`);
  }
  return { status, stdout, stderr: stderr.toString() };
}

/** `vhd-util` in a folder. */
export function vhdUtilIn(folder: string): (...args: string[]) => ToolResult {
  return (...args) => runIn(folder, builtCommand("vhd-util"), args);
}

/** What gives a disk these bytes, a part at a time. */
export function filler(data: Uint8Array): (bytes: Uint8Array) => Promise<number> {
  let done = 0;
  return async (bytes) => {
    const part = data.subarray(done, done + bytes.length);
    bytes.set(part);
    done += part.length;
    return part.length;
  };
}

/** Writes whole sectors to a disk. */
export async function writeDisk(
  path: string,
  extents: readonly Extent[],
  driver: "vhd" | "aio" = "vhd",
): Promise<void> {
  const disk = new DiskIo(loadEngineModule(), portModule().Port, { driver, path, access: "write" });
  for (const { offset, data } of extents) {
    await disk.write(offset / SECTOR, data.length / SECTOR, filler(data), false);
  }
  disk.close();
}
