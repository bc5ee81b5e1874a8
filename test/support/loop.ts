/** Loop devices: files as block devices, where this is permitted. */

import { onTestFinished } from "vitest";
import { outcomeOf, run } from "./run.ts";

/** Attaches a file to a loop device, until the test is over at the latest. */
export async function loopDevice(path: string): Promise<string | undefined> {
  const { status, stdout } = await outcomeOf("losetup", ["--find", "--show", path]);
  if (status !== 0) return undefined;
  const device = stdout.trim();
  onTestFinished(async () => {
    await outcomeOf("losetup", ["-d", device]);
  });
  return device;
}

/** The same under a name in a folder: a node of its own, which may go. */
export async function namedLoopDevice(image: string, name: string): Promise<string | undefined> {
  const device = await loopDevice(image);
  if (device !== undefined) await run("cp", ["-a", device, name]);
  return device === undefined ? undefined : name;
}
