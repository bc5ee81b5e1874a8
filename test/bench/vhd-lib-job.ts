/** What npm `vhd-lib` is measured with: `merge PARENT CHILD`, or `check FILE`. */

import { checkChainWithVhdLib, mergeWithVhdLib } from "../support/vhd-lib.ts";

const [job, first = "", second = ""] = process.argv.slice(2);
if (job === "merge") {
  await mergeWithVhdLib(first, second);
} else {
  await checkChainWithVhdLib(first);
}
