/** The original, where it is installed: BLKTAP names the prefix. `make interop` needs it; nothing else does. */

import { join } from "node:path";
import { onTestFinished } from "vitest";
import { startBlktap } from "../bench/blktap.ts";
import { MIB } from "./data.ts";
import type { Extent } from "./images.ts";
import { NbdClient } from "./nbd-client.ts";
import { type Outcome, outcomeOf, run, until } from "./run.ts";

const prefix = process.env.BLKTAP ?? "";
const program = join(prefix, "bin/vhd-util");

/** Runs vhd-util, which must be content; yields what it says. */
export async function vhdUtil(...args: string[]): Promise<string> {
  return await run(program, args);
}

/** Runs vhd-util, which is to fail at the point that its own tests name so. */
export async function interrupted(point: string, args: readonly string[]): Promise<Outcome> {
  return await outcomeOf("env", [`VHD_UTIL_TEST_FAIL_${point}=1`, program, ...args]);
}

/** What its checker says of an image and its parents. */
export async function check(path: string, options: readonly string[]): Promise<Outcome> {
  return await outcomeOf(program, ["check", "-n", path, "-p", ...options]);
}

/** What its checker says of an image alone. */
export async function checkAlone(path: string, options: readonly string[]): Promise<Outcome> {
  return await outcomeOf(program, ["check", "-n", path, ...options], { seconds: 90 });
}

/**
 * Does something with an image that the original serves for just that. Its structured replies confuse libnbd and qemu at
 * times, and it takes one request after the other here.
 */
async function whileServedByOriginal<T>(path: string, work: (client: NbdClient) => Promise<T>): Promise<T> {
  const service = await startBlktap(path, false, prefix);
  onTestFinished(async () => {
    if (service.alive) await service.stop(true);
  });
  try {
    const [endpoint] = service.endpoints;
    if (endpoint?.kind !== "nbd") throw new Error("the original is served over NBD");
    const client = await NbdClient.connect(endpoint.socket, { structuredReplies: false });
    const result = await work(client);
    await client.close();
    return result;
  } finally {
    await service.stop(false);
    await until("the original ends", () => !service.alive);
  }
}

/** The whole disk, as the original serves it. */
export async function readWithOriginal(path: string): Promise<Buffer> {
  return await whileServedByOriginal(path, async (client) => {
    const content = Buffer.alloc(client.size);
    for (let offset = 0; offset < content.length; offset += MIB) {
      const { error, data } = await client.read(offset, Math.min(MIB, content.length - offset));
      if (error !== 0) throw new Error(`the original fails to read at ${offset}: ${error}`);
      data.copy(content, offset);
    }
    return content;
  });
}

/** Writes through the original. */
export async function writeWithOriginal(path: string, extents: readonly Extent[]): Promise<void> {
  await whileServedByOriginal(path, async (client) => {
    for (const { offset, data } of extents) {
      for (let done = 0; done < data.length; done += MIB) {
        const { error } = await client.write(offset + done, data.subarray(done, done + MIB));
        if (error !== 0) throw new Error(`the original fails to write at ${offset + done}: ${error}`);
      }
    }
  });
}
