/** The original tapdisk, where it is installed, controlled with its own tap-ctl. */

import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./processes.ts";
import type { Service } from "./services.ts";

const NBD_SOCKETS = "/run/blktap-control";

/**
 * Serves a VHD with the blktap that is installed in `prefix`.
 * @throws an error that says what its tools said.
 */
export async function startBlktap(image: string, readOnly: boolean, prefix: string): Promise<Service> {
  const control = await tapCtl(prefix);
  const pid = /\d+/.exec(await control("spawn"))?.[0];
  const minor = /(\d+)\s*$/.exec(await control("allocate"))?.[1];
  if (pid === undefined || minor === undefined) {
    throw new Error("tap-ctl names no process or no device");
  }
  const disk = ["-p", pid, "-m", minor];
  const stop = async () => {
    // The last detach ends the process. What is not there any more can't be undone.
    await control("close", ...disk).catch(() => {});
    await control("detach", ...disk).catch(() => {});
    await control("free", "-m", minor).catch(() => {});
  };
  try {
    await control("attach", ...disk);
    await control("open", ...disk, "-a", `vhd:${image}`, ...(readOnly ? ["-R"] : []));
    const socket = `${NBD_SOCKETS}/nbd${pid}.${minor}`;
    await access(socket);
    return {
      endpoints: [{ kind: "nbd", socket }],
      pids: [Number(pid)],
      get alive() {
        return isAlive(Number(pid));
      },
      door: socket,
      collections: () => undefined,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function tapCtl(prefix: string): Promise<(...args: string[]) => Promise<string>> {
  // It may not raise its limits everywhere; a library beside it forgives that.
  const shim = join(prefix, "memlock.so");
  const preload = (await readFile(shim).catch(() => undefined)) === undefined ? {} : { LD_PRELOAD: shim };
  const env = { LD_LIBRARY_PATH: join(prefix, "lib"), ...preload };
  return (...args) => run({ program: join(prefix, "bin/tap-ctl"), args, env }, 20_000);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
