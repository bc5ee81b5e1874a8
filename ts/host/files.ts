/**
 * This folder holds what `tapdisk` and the tools share: files as the engine's jobs want them, and running jobs. The bytes
 * of files are moved by the port; only what concerns a file as such (name, locks, space) is done here.
 */

import { closeSync, fsyncSync, ftruncateSync, openSync, realpathSync, rmSync, statfsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Access, Answer, OpenedFile, Want } from "../engine/engine.ts";
import { errnoOf } from "../tapdisk/errors.ts";
import type { Port } from "../tapdisk/port.ts";
import { serversOf } from "./in-use.ts";

/** How the port opens a file for each kind of access. */
const openOptions = {
  inspect: { write: false, lock: "none" },
  read: { write: false, lock: "read" },
  parent: { write: false, lock: "parent" },
  merge: { write: true, lock: "merge" },
  write: { write: true, lock: "write" },
  create: { write: true, lock: "write", create: true, exclusive: true },
} as const satisfies Record<Access, object>;

/** What the port can do with files. */
export type FilePort = Pick<Port, "openFile" | "closeFile">;

/** The files that one port has open for one engine. */
export class HostFiles {
  readonly #port: FilePort;
  readonly #direct: boolean;
  readonly #paths = new Map<number, string>();
  #failure: unknown;

  /** With `direct`, files are read and written around the page cache. */
  constructor(port: FilePort, direct: boolean) {
    this.#port = port;
    this.#direct = direct;
  }

  /**
   * Opens a file.
   * @throws an error that names the path, with the errno's name as its `code`
   */
  open(path: string, access: Access): OpenedFile {
    const [server] = openOptions[access].write ? serversOf(path) : [];
    if (server !== undefined) {
      throw Object.assign(new Error(`${path} is in use by tapdisk, process ${server}`), { code: "EBUSY" });
    }
    const { file, size, blockDevice } = this.#port.openFile(path, { direct: this.#direct, ...openOptions[access] });
    this.#paths.set(file, path);
    if (access === "create") syncFolder(path);
    const modified = Math.max(0, Math.floor(statSync(path).mtimeMs / 1000));
    return { file, size, blockDevice, realPath: realpathSync(path), modified };
  }

  /** Closes a file. */
  close(file: number): void {
    this.#paths.delete(file);
    this.#port.closeFile(file);
  }

  /** Closes all files, and forgets failures. */
  closeAll(): void {
    this.#failure = undefined;
    for (const file of this.#paths.keys()) {
      this.close(file);
    }
  }

  /** Does what a job wants. What goes wrong is an errno value for the job. */
  fulfil(want: Want): Answer {
    try {
      return this.#do(want);
    } catch (error) {
      this.#failure = error;
      return { errno: errnoOf(error) };
    }
  }

  /** What went wrong last with a want, in the words of whoever knows most of it. */
  get failure(): unknown {
    return this.#failure;
  }

  #do(want: Want): Answer {
    if ("open" in want) return { opened: this.open(want.open.path, want.open.access) };
    if ("close" in want) {
      this.close(want.close.file);
      return { done: {} };
    }
    if ("remove" in want) {
      rmSync(want.remove.path);
      syncFolder(want.remove.path);
      return { done: {} };
    }
    const { bavail, bsize } = statfsSync(this.#path(want.freeSpace.file));
    return { freeSpace: bavail * bsize };
  }

  #path(file: number): string {
    const path = this.#paths.get(file);
    if (path === undefined) throw new Error(`no open file has the number ${file}`);
    return path;
  }
}

/** Makes a new file of zeros, durably; what fails leaves nothing behind. */
export function makeRawFile(path: string, size: number): void {
  const file = openSync(path, "wx");
  try {
    ftruncateSync(file, size);
    fsyncSync(file);
  } catch (error) {
    rmSync(path, { force: true });
    throw error;
  } finally {
    closeSync(file);
  }
  syncFolder(path);
}

/** Whether a path leads to a block device. */
export function isBlockDevice(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isBlockDevice() ?? false;
}

/** Makes what happened to a name durable. */
export function syncFolder(path: string): void {
  const folder = openSync(dirname(path), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}
