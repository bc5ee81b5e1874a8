/**
 * A file system of its own for images in a hundred thousand pieces, as first writes leave them. Where the machine's file
 * system is mounted with `discard`, deleting one takes a minute, in which nobody's journal commits; where it is old, making
 * one does.
 */

import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Case } from "./cases.ts";
import { run } from "./processes.ts";
import type { CacheMode } from "./results.ts";

const SIZE = "16G";
const UNMOUNT_ATTEMPTS = 50;
const UNMOUNT_PAUSE_MS = 100;

export interface Scratch {
  readonly folder: string;
  /** Makes reads and writes around its cache go to where this case wants them. */
  enter(one: Case, mode: CacheMode): Promise<void>;
  /** Why it is an ordinary folder; nothing when it is a file system. */
  readonly reason: string | undefined;
  remove(): Promise<void>;
}

/** Makes the file system in a file in `parent`; an ordinary folder where that is not permitted. */
export async function makeScratch(parent: string): Promise<Scratch> {
  const file = join(parent, "scratch.img");
  const folder = join(parent, "scratch");
  await mkdir(folder);
  const undo: (() => Promise<unknown>)[] = [() => rm(file, { force: true })];
  const remove = async () => {
    for (const step of undo.splice(0).reverse()) {
      await step().catch(() => {});
    }
  };
  try {
    await run({ program: "fallocate", args: ["--length", SIZE, file] });
    const lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
    await run({ program: "mkfs.ext4", args: ["-q", "-F", "-m", "0", "-E", lazy, file] });
    // Around the page cache: or else everything would be in it twice.
    const device = (await run({ program: "losetup", args: ["--find", "--show", "--direct-io=on", file] })).trim();
    undo.push(() => run({ program: "losetup", args: ["--detach", device] }));
    await run({ program: "mount", args: ["-t", "ext4", "-o", "nodiscard,noinit_itable", device, folder] });
    undo.push(() => unmount(folder));
    return {
      folder,
      reason: undefined,
      enter: async ({ image }, mode) => {
        // Direct writes into a file that was never written take a commit of the machine's journal each: no measure of who
        // serves. Then its device is in the page cache.
        const through = image === "empty" && mode === "direct" ? "off" : "on";
        await run({ program: "losetup", args: [`--direct-io=${through}`, device] });
      },
      remove,
    };
  } catch (error) {
    await remove();
    return {
      folder,
      reason: error instanceof Error ? error.message : String(error),
      enter: async () => {},
      remove: async () => {},
    };
  }
}

/** An io_uring lets go of its files some time after its process is gone. */
async function unmount(folder: string): Promise<void> {
  for (let attempt = 0; attempt < UNMOUNT_ATTEMPTS; attempt++) {
    try {
      await run({ program: "umount", args: [folder] });
      return;
    } catch {
      await sleep(UNMOUNT_PAUSE_MS);
    }
  }
  await run({ program: "umount", args: ["--lazy", folder] });
}
