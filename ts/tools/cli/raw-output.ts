/** Data on standard output, as they are. */

import { writeSync } from "node:fs";
import { errnoOf } from "../../tapdisk/errors.ts";
import { ToolError } from "./failure.ts";
import { BROKEN_PIPE_STATUS } from "./output.ts";

const STDOUT = 1;
const pause = new Int32Array(new SharedArrayBuffer(4));

/**
 * Writes all bytes to standard output before it returns.
 * @throws a ToolError, without words when nobody reads them any more
 */
export function writeOut(bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(STDOUT, bytes, done);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === "EPIPE") throw new ToolError("", BROKEN_PIPE_STATUS);
      if (code !== "EAGAIN") throw new ToolError(`standard output: ${message}`, errnoOf(error));
      // Somebody made the pipe one that doesn't block: it is full.
      Atomics.wait(pause, 0, 0, 1);
    }
  }
}
